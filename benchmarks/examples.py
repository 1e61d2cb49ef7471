"""200 pictures × 64 knockouts: gl.sweep over a list of examples beside plain TransformerLens hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ChameleonProcessor, PreTrainedTokenizerFast
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

import gatelens as gl
from gatelens.examples import prepare_numbered

from .model import FIRST_CODE, SMALL, Size, chameleon_config, make_transformers, twin_of, with_tokens
from .plain import make_plain, run_plain
from .sweep import knockouts, model_facts, words
from .timing import Times, in_turn, ratio

EXAMPLES = 200
SAMPLE, EACH = (
    8,
    2,
)  # of how many of them the slow side computes how many runs; its time is extrapolated from these
PIXELS = 512  # along a picture
LIMIT = 40.0


def processor(size: Size) -> Any:
    """The real class, over the vocabulary of the benchmark's model; words are ``w0``, ``w1`` …"""
    config, n_words = chameleon_config(size), size.d_vocab - FIRST_CODE - size.n_codes
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 6, "<sep>": 7, **config.vocabulary_map}
    vocabulary |= {f"w{i}": FIRST_CODE + size.n_codes + i for i in range(n_words)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "<sep>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        additional_special_tokens=["<image>", "<racm3:break>", "<eoss>"],
        **{f"{name}_token": word for name, word in special.items()},
    )
    pictures = ChameleonImageProcessorPil(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}, rescale_factor=0.0078
    )
    return ChameleonProcessor(pictures, tokenizer, image_seq_length=size.n_image)


def examples(size: Size, n: int) -> list[gl.data.Example]:
    """Pictures of noise, each with its own words after it."""
    made = []
    for i in range(n):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
        asked = " ".join(
            f"w{k}" for k in rng.integers(0, size.d_vocab - FIRST_CODE - size.n_codes, size.n_text)
        )
        made.append(gl.data.Example(Image.fromarray(pixels), f"<image> {asked}", ("w0",), "class", str(i)))
    return made


class ExamplesBench:
    """One model under gatelens and under TransformerLens, and the examples."""

    def __init__(self, size: Size = SMALL, n: int = EXAMPLES, hf: Any = None) -> None:
        size = with_tokens(size, 1024)  # what the encoder makes of a picture
        self.hf = make_transformers(size) if hf is None else hf
        self.plain = make_plain(twin_of(self.hf, "eager"))
        self.model = gl.HookedVLM.from_module(twin_of(self.hf, "sdpa"), processor(size))
        self.examples, self.runs = examples(size, n), knockouts(size.n_layers)
        self.metric = gl.metrics.logit_diff(*words(size))

    def engine(self) -> dict[tuple[str, str], float]:
        """The metric of every example and run, by gl.sweep; pictures are read and encoded in it."""
        table: pd.DataFrame = gl.sweep(
            self.model, self.examples, {"run": self.runs}, self.metric, progress=False
        )
        return {(one, run): value for run, one, value in table.itertuples(index=False)}

    def prepared(self) -> list[tuple[str, Any, Any, dict[str, Any]]]:
        """Of some examples: id, token ids with the picture's codes, who is where, and the runs to make.

        Each makes :data:`EACH` of the runs, others than the next: by plain hooks each run costs the same.
        """
        found = []
        for i, example in enumerate(self.examples[:SAMPLE]):
            inputs = prepare_numbered(self.model, [example], [i])  # random positions are drawn by the number
            ids = inputs.tensors["input_ids"].clone()
            with torch.no_grad():
                codes = self.hf.model.get_image_tokens(inputs.tensors["pixel_values"])
            ids[inputs.tokens.mask("image")] = codes.flatten().to(ids)
            chosen = dict(list(self.runs.items())[i :: max(1, len(self.runs) // EACH)])
            found.append((example.id, ids, inputs.tokens, chosen))
        return found

    def transformer_lens(self, prepared: list[Any]) -> dict[tuple[str, str], float]:
        """The same of the sample, one whole forward pass each; its pictures are encoded already."""
        found = {}
        with torch.no_grad():
            for one, ids, tokens, chosen in prepared:
                for run, spec in chosen.items():
                    logits = run_plain(self.plain, ids, spec.hooks(tokens, self.model.cfg))
                    found[one, run] = float(self.metric(logits))
        return found


def measure(size: Size = SMALL, hf: Any = None, n: int = EXAMPLES) -> dict[str, Any]:
    """Times of both, their ratio, and how far their numbers differ; the slow side computes a sample."""
    bench = ExamplesBench(size, n, hf)
    prepared = bench.prepared()
    values: dict[str, dict[tuple[str, str], float]] = {}

    def remember(name: str, work: Callable[[], dict[tuple[str, str], float]]) -> Callable[[], None]:
        def run() -> None:
            values[name] = work()

        return run

    run_plain(bench.plain, prepared[0][1], [])  # one warm-up of each
    gl.sweep(bench.model, bench.examples[:1], {}, bench.metric, progress=False)
    works = {"engine": bench.engine, "transformer_lens": lambda: bench.transformer_lens(prepared)}
    times = in_turn({name: remember(name, work) for name, work in works.items()}, 1, warm_up=0)
    sampled = values["transformer_lens"]
    scale = n * len(bench.runs) / len(sampled)
    times["transformer_lens"] = Times(tuple(scale * s for s in times["transformer_lens"].seconds))
    over = ratio(times["transformer_lens"], times["engine"])
    return {
        "model": model_facts(size, bench.hf),
        "examples": n,
        "runs": len(bench.runs),
        "sampled_runs": len(sampled),
        "sampled_examples": len({one for one, _ in sampled}),
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratio": over,
        "limit": LIMIT,
        "passes": over >= LIMIT,
        "max_metric_difference": max(abs(values["engine"][key] - value) for key, value in sampled.items()),
    }
