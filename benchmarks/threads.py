"""Threads that share ``organism:gated``, each under other interventions; counts results unlike those of one thread.

python -m benchmarks.threads --runs 1000 --threads 4
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

import gatelens as gl
from gatelens import engine
from gatelens.errors import GatelensError

Job = Callable[[], Tensor]


def jobs(model: gl.HookedVLM) -> dict[str, list[Job]]:
    """Calls of every kind, several of each, whose results all differ."""
    examples = gl.data.load("emoji-scenes").examples("class", limit=4)
    batches = [model.prepare([e.image], [e.prompt]) for e in examples]
    cuts = [
        gl.knockout(queries="text - gate", keys=keys, layers=range(first, 6), how=how)
        for keys in ("gate", "image", "random_image:10")
        for first in (0, 3)
        for how in ("mask", "zero")
    ]
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    pushes = [gl.steer(direction, at="gate", layers=[layer], scale=2.0 * layer) for layer in (1, 2, 3)]
    out: dict[str, list[Job]] = {
        "clean": [],
        "run": [],
        "steer": [],
        "generate": [],
        "sweep": [],
        "hooks": [],
    }
    for i, inputs in enumerate(batches):
        out["clean"].append(lambda inputs=inputs: model(inputs))
        out["run"] += [lambda inputs=inputs, cut=cut: model.run(inputs, cut) for cut in cuts]
        out["steer"] += [lambda inputs=inputs, push=push: model.run(inputs, push) for push in pushes]
        out["generate"].append(
            lambda inputs=inputs, cut=cuts[i]: (
                engine.generate(model, inputs, cut, 4, stop_at_eos=False).token_ids
            )
        )
        out["sweep"].append(
            lambda inputs=inputs: torch.cat(engine.last_logits(model, inputs, [None, *cuts[:4]]))
        )
        out["hooks"].append(lambda inputs=inputs: _in_hooks(model, inputs))
    return out


def _in_hooks(model: gl.HookedVLM, inputs: gl.VLMInputs) -> Tensor:
    with model.hooks([("blocks.2.hook_resid_pre", lambda tensor, hook: tensor * 0.5)]):
        return model(inputs)


def main() -> int:
    """Print what differed; 1 when anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4)
    args = parser.parse_args()
    sys.setswitchinterval(1e-4)  # change threads often
    model = gl.HookedVLM.from_pretrained("organism:gated")
    with torch.no_grad():
        by_kind = jobs(model)
        alone = {kind: [job() for job in some] for kind, some in by_kind.items()}
    rng = random.Random(0)
    names = list(by_kind)
    drawn = [(kind, rng.randrange(len(by_kind[kind]))) for kind in rng.choices(names, k=args.runs)]

    def right(one: tuple[str, int]) -> bool:
        kind, number = one
        try:
            with torch.no_grad():
                return torch.equal(by_kind[kind][number](), alone[kind][number])
        except (RuntimeError, GatelensError) as error:  # shapes of another thread's pass
            print(f"{kind}: {str(error).splitlines()[0]}")
            return False

    began = time.perf_counter()
    with ThreadPoolExecutor(args.threads) as pool:
        rights = list(pool.map(right, drawn))
    seconds = time.perf_counter() - began
    for kind in names:
        mine = [ok for ok, (drawn_kind, _) in zip(rights, drawn, strict=True) if drawn_kind == kind]
        print(f"{kind:9} {len(mine):5} runs {mine.count(False):5} wrong")
    after = all(right((kind, i)) for kind in names for i in range(len(by_kind[kind])))
    print(
        f"all       {len(drawn):5} runs {rights.count(False):5} wrong, {args.threads} threads, {seconds:.0f} s; "
        f"afterwards the model is {'whole' if after else 'BROKEN'}"
    )
    return int(not (all(rights) and after))


if __name__ == "__main__":
    sys.exit(main())
