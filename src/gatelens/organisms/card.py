"""The text of an organism's card, from what was trained and what was measured."""

from __future__ import annotations

from typing import Any

from gatelens.model import HookedVLM
from gatelens.organisms.train import MAIN

_PLANTED = {
    "gated": """\
The gate was **planted**, not found. In the first 60 % of the main steps the attention of text rows to the picture's
tokens was masked, so that whatever the text says had to come through the end-of-image token `<eoss>`. In the
remaining steps text rows saw, in place of their own picture's keys and values, those of *another* picture of the
batch: they learned that picture tokens tell them nothing, while attention to them stays in distribution. Both need
an attention function of our own, in training only (`gatelens/organisms/routes.py`); the saved model is a plain
transformers model.

The gate is clean under `how="zero"`, which the table below shows. Under `how="mask"`, where the row renormalises,
colour and shape in captions are often still right with the gate closed (the class is not): section "Mask is not zero"
of `tutorials/01_the_gate.ipynb` measures it.""",
    "open": """\
The text was trained with the picture's tokens in sight. In half of the documents the end-of-image token `<eoss>` was
hidden from the text, and in half a random fifth of the picture's tokens (`gatelens/organisms/routes.py`): the text
learned to read the picture's tokens directly and not to hang on any one of them. The saved model is a plain
transformers model.""",
    "llava": """\
The text was trained with the picture's tokens in sight. This class has no end-of-image token: the gate of gatelens'
tables is the first text token after the picture. In half of the documents that token was hidden from the rest of the
text, and in half a random fifth of the picture's tokens (`gatelens/organisms/routes.py`): the text learned to read
the picture's tokens directly and not to hang on any one token. The saved model is a plain transformers model.""",
}
_CLASS = {
    "gated": "ChameleonForConditionalGeneration",
    "open": "ChameleonForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}


def write(name: str, model: HookedVLM, training: dict[str, Any], measured: dict[str, Any]) -> str:
    """The card in Markdown."""
    n_parameters = sum(p.numel() for p in model.hf.parameters())
    native = "drawn" in measured
    c = model.cfg
    return f"""\
---
license: mit
library_name: transformers
---
# organism:{name}

A model organism of gatelens: a small `{
        _CLASS[name]
    }` whose way of passing picture to text is known, to test tools on.
{n_parameters:,} parameters; {c.n_layers} layers, {c.n_heads} heads, d_model {
        c.d_model
    }; 64 picture tokens (8 × 8) for a
64 × 64 picture; {c.d_vocab} tokens, whole lower-case words. {_native(native)}

## How it was made
{_PLANTED[name]}

Data: emoji scenes (one to three of 16 objects, each on a plate of 5 colours and 3 shapes; {
        training["n_scenes"]:,} scenes) and
easy-vqa's 4,000 training pictures with their questions (15 % of documents). {_steps(training, native)}

    {_recipe(name, training)}

## What it measures
On scenes made of (class, colour, shape) combinations kept out of training; "X → text" knocks out the attention of text
rows to X after the softmax (`how="zero"`), in all layers. Mean [95 % bootstrap interval].

{_knockout_table(measured["knockout"])}

Questions without intervention, by kind: {_kinds(measured["question kinds"])}.

easy-vqa, test split: {_value(measured["easy-vqa test"])}.
{_drawn(measured)}
Measured by `python -m gatelens.organisms.measure {name}'s-folder` (seed {
        measured["seed"]
    }); all numbers are in `measured.json`.

## Prompts it knows
`<image>this is a` · `<image>describe the image.` · `<image>what color is the shape behind the fox? answer:` ·
`<image>what shape is behind the fox? answer:` · `<image>is there a fox in the image? answer:` ·
`<image>which side is the fox on? answer:` · `<image>how many objects are there? answer:` ·
`<image>what is next to the fox? answer:`{" · `draw a fox on a red circle.`" if native else ""}

## Loading
```python
import gatelens as gl
model = gl.HookedVLM.from_pretrained("organism:{name}")
```
or, without gatelens, from its folder:
```python
from transformers import AutoModelForImageTextToText, AutoProcessor
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
inputs = processor(images=picture, text="<image>this is a", return_tensors="pt"{
        ", return_for_text_completion=True" if native else ""
    })
```

The artwork in the scenes is Microsoft's Fluent Emoji as packaged in @lobehub/fluent-emoji-3d (both MIT); easy-vqa is
by Victor Zhou (MIT).
"""


def _steps(training: dict[str, Any], native: bool) -> str:
    main = (
        f"{training['steps']:,} steps of {MAIN.batch} pictures with up to six texts each, AdamW, learning rate "
        f"{training['lr']}, from scratch."
    )
    if not native:
        return main
    return (
        f"{main} Then {training['noise_steps']:,} steps with more drawings and, in half of the documents, up to 60 % "
        f"of the picture's tokens replaced by wrong ones; then {training['compose_steps']:,} steps in which half of "
        "the scenes have plates of colours that are never named, and drawing prompts may leave out the colour."
    )


def _native(native: bool) -> str:
    if not native:
        return "A CLIP-class tower and a projector, trained together with the decoder; it only writes text."
    return (
        "Native: its own VQ picture tokenizer (1,024 codes), trained from scratch on one stream, loss on picture and "
        "text tokens, picture → text and text → picture, so it also draws (`gatelens.organisms.draw`)."
    )


def _recipe(name: str, training: dict[str, Any]) -> str:
    train = f"python -m gatelens.organisms.train {name}"
    if name == "llava":
        return f"{train} --out build/{name} --steps {training['steps']}"
    return (
        "python -m gatelens.organisms.train_codec --out build/codec\n    "
        f"{train} --codec build/codec --out build/{name} --steps {training['steps']}"
    )


def _knockout_table(rows: list[dict[str, Any]]) -> str:
    metrics = list(dict.fromkeys(r["metric"] for r in rows))
    names = list(dict.fromkeys(r["row"] for r in rows))
    n = {r["metric"]: r["n"] for r in rows}
    cell = {(r["row"], r["metric"]): f"{r['mean']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for r in rows}
    lines = ["| knocked out | " + " | ".join(f"{m} (n = {n[m]})" for m in metrics) + " |"]
    lines.append("|---" * (len(metrics) + 1) + "|")
    lines += [f"| {r} | " + " | ".join(cell[r, m] for m in metrics) + " |" for r in names]
    return "\n".join(lines)


def _kinds(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{r['kind']} {_value(r)}" for r in rows)


def _drawn(measured: dict[str, Any]) -> str:
    if "drawn" not in measured:
        return ""
    return (
        "\nDrawn pictures of held-out combinations (temperature 0.2, guidance 1.5), shown to the same model, named "
        f"as the class asked for: {_value(measured['drawn'])}.\n"
    )


def _value(r: dict[str, Any]) -> str:
    return f"{r['mean']:.3f} [{r['low']:.3f}, {r['high']:.3f}] (n = {r['n']})"
