"""Other toolkits on the same weights and the same runs, each in an environment of its own that this script makes.

``python -m benchmarks.rivals`` makes the environments and measures. Their scripts are in ``in_rivals/``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gatelens as gl

from .model import BOI, EOI, FIRST_CODE, PLACEHOLDER, SMALL, Size, code_name, make_transformers, save
from .sweep import HOWS, Bench
from .timing import Times, in_turn

TORCH = "torch==2.13.0"  # first and by its pin: what the rivals ask for would bring another build
HERE = Path(__file__).parent
VENVS = HERE.parent / "build" / "rivals"


@dataclass(frozen=True)
class Rival:
    """A toolkit and how it is installed.

    ``alone`` are installed without what they require, ``others`` with it. ``note`` says why, and what had to
    be written for it.
    """

    name: str
    version: str
    alone: tuple[str, ...]
    others: tuple[str, ...]
    note: str


RIVALS = (
    Rival(
        "easyroutine",
        "1.1.5",
        ("easyroutine==1.1.5",),
        (
            "transformers==4.51.1",
            "numpy<2",
            "accelerate>=1.1.1,<2",
            "einops>=0.8,<0.9",
            "pandas>=2.3,<3",
            "pydantic>=2.10.6,<3",
            "rich>=13.9.4,<14",
            "pyyaml>=6.0.2,<7",
            "python-dotenv>=1.0.1,<2",
            "sentencepiece>=0.2,<0.3",
            "pillow",
        ),
        "installed without torchvision, vllm, litellm and pytest, which it requires and this does not use",
    ),
    Rival(
        "vlmprobe",
        "1.0.1",
        (),
        ("vlmprobe==1.0.1", "transformers>=5.3,<5.4", "accelerate>=1.0", "pillow>=10"),
        "installed without torchvision of its extra; it has no adapter for Chameleon, the script brings one",
    ),
    Rival("nnsight", "0.8.1", (), ("nnsight==0.8.1", "transformers==5.23.0"), "edits inside eager attention"),
)


def measure(
    size: Size = SMALL, repeats: int = 5, hf: Any = None, venvs: Path = VENVS
) -> list[dict[str, Any]]:
    """A row for each rival and meaning of knockout: time a run, ours beside it, difference of logits."""
    hf = make_transformers(size) if hf is None else hf
    bench = Bench(size, hf=hf)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save(hf, folder / "model" / "facebook" / "chameleon-7b")
        mine = _write_work(bench, folder, repeats)
        rows: list[dict[str, Any]] = []
        for rival in RIVALS:
            ours = _ours(bench, repeats)
            rows += _rows(rival, _run(rival, folder, venvs), ours, mine, folder)
    return rows


def _cuts(bench: Bench) -> dict[str, dict[str, Any]]:
    return {how: {k: ko for k, ko in bench.runs.items() if k.startswith(f"image, {how},")} for how in HOWS}


def _write_work(bench: Bench, folder: Path, repeats: int) -> dict[str, torch.Tensor]:
    """What the rivals are asked for, and the logits we give for it: Float[run, query row, d_vocab] by ``how``."""
    size, tokens = bench.size, bench.inputs.tokens
    queries, keys = (tokens.mask(s)[0].nonzero()[:, 0].tolist() for s in ("text", "image"))
    work = {
        "ids": bench.ids.tolist(),
        "queries": queries,
        "keys": keys,
        "starts": [min(ko.layers) for ko in _cuts(bench)["mask"].values()],
        "n_layers": size.n_layers,
        "n_heads": size.n_heads,
        "repeats": repeats,
        "words": _vocabulary(size),
    }
    (folder / "work.json").write_text(json.dumps(work))
    return {
        how: torch.stack([bench.model.run(bench.inputs, ko)[0, queries] for ko in cuts.values()])
        for how, cuts in _cuts(bench).items()
    }


def _vocabulary(size: Size) -> list[str]:
    named = {PLACEHOLDER: "<image>", BOI: "<racm3:break>", EOI: "<eoss>"}
    codes = {FIRST_CODE + i: code_name(i) for i in range(size.n_codes)}
    return [named.get(i) or codes.get(i) or f"word{i}" for i in range(size.d_vocab)]


def _ours(bench: Bench, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds a run by gl.sweep and by plain TransformerLens, for the very runs the rival is asked for."""
    out: dict[str, dict[str, float]] = {}
    for how, cuts in _cuts(bench).items():

        def sweep(cuts: dict[str, Any] = cuts) -> None:
            gl.sweep(bench.model, bench.inputs, {"run": cuts}, bench.metric, progress=False)

        def plain(cuts: dict[str, Any] = cuts) -> None:
            with torch.no_grad():
                for name in cuts:
                    bench.plain.run_with_hooks(bench.ids, fwd_hooks=bench.pairs[name])

        times = in_turn({"gatelens": sweep, "transformer_lens": plain}, repeats)
        out[how] = {name: t.median / len(cuts) for name, t in times.items()}
    return out


def _run(rival: Rival, folder: Path, venvs: Path) -> dict[str, Any]:
    try:
        python = environment(rival, venvs)
    except subprocess.CalledProcessError as error:
        return {"error": f"installation failed: {_last_line(error.stderr)}"}
    script = HERE / "in_rivals" / f"with_{rival.name}.py"
    done = subprocess.run(
        [str(python), str(script), str(folder)], capture_output=True, text=True, check=False, cwd=folder
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"name"'):
            return dict(json.loads(line))
    return {"error": f"ended with {done.returncode}: {_last_line(done.stderr)}"}


def environment(rival: Rival, venvs: Path = VENVS) -> Path:
    """The Python of the rival's environment, made on first use and kept."""
    place = venvs / rival.name
    python, mark = place / "bin" / "python", place / ".installed"
    wanted = "\n".join((TORCH, *rival.alone, *rival.others))
    if mark.is_file() and mark.read_text() == wanted:
        return python
    place.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    steps = [[sys.executable, "-m", "venv", "--clear", str(place)], [*pip, TORCH]]
    steps += [[*pip, "--no-deps", *rival.alone]] if rival.alone else []
    steps += [[*pip, TORCH, *rival.others]]
    for step in steps:
        subprocess.run(step, check=True, capture_output=True, text=True)
    mark.write_text(wanted)
    return python


def _last_line(text: str | None) -> str:
    lines = [line for line in (text or "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def _rows(
    rival: Rival, found: dict[str, Any], ours: dict[str, Any], mine: dict[str, torch.Tensor], folder: Path
) -> list[dict[str, Any]]:
    rows = []
    for how in HOWS:
        row: dict[str, Any] = {
            "toolkit": f"{rival.name} {rival.version}",
            "how": how,
            "runs": len(mine[how]),
            "note": rival.note,
            "versions": found.get("versions"),
            "gatelens_ms_per_run": 1000 * ours[how]["gatelens"],
            "transformer_lens_ms_per_run": 1000 * ours[how]["transformer_lens"],
        }
        result = found.get(how, {"error": found.get("error", "no result")})
        if "error" in result:
            row["error"] = result["error"]
        else:
            times = Times(tuple(result["seconds"]))
            theirs = torch.load(folder / result["logits"])
            row["ms_per_run"] = 1000 * times.median
            row["seconds"] = result["seconds"]
            row["over_gatelens"] = times.median / ours[how]["gatelens"]
            row["max_logit_difference"] = float((theirs - mine[how]).abs().max())
        rows.append(row)
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
