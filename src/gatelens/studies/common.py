"""What studies share: resolving names, drawing examples, batches, label tokens, fingerprints, progress."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from tqdm.auto import tqdm

from gatelens.errors import DataError, InputError, InterventionError
from gatelens.runs import fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image

    from gatelens.data import Dataset, Example
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM

How = Literal["zero", "mask"]
Item = TypeVar("Item")
Chunk = tuple[int, int, Sequence["Example"]]
_BUDGET = 1 << 28  # numbers in the largest tensor of a batch (attention scores of a layer, or logits)


def resolve_model(model: HookedVLM | str, **options: Any) -> HookedVLM:
    """The model itself, or the one of that name."""
    if isinstance(model, str):
        from gatelens.model import HookedVLM

        return HookedVLM.from_pretrained(model, **options)
    return model


def resolve_data(data: Dataset | str, skip_bad: bool = False) -> Dataset:
    """The data set itself, or the one of that name or folder."""
    if isinstance(data, str):
        from gatelens.data import load

        return load(data, skip_bad=skip_bad)
    return data


def provenance(data: Dataset) -> dict[str, Any]:
    """What a run's manifest says of its data: the place it came from, where there is a choice, and the bad rows that
    were skipped, where there were any."""
    where = getattr(data, "where", "")
    found: dict[str, Any] = {"data_from": where} if where else {}
    rows = [f"{r['data']} row {r['row']}: {r['why']}" for r in getattr(data, "skipped", ())]
    return {**found, "bad_rows_left_out": {"n": len(rows), "rows": rows}} if rows else found


def model_name(model: HookedVLM | str) -> str:
    """How the run calls the model: its name where it has one, else its class."""
    if isinstance(model, str):
        return model
    for holder, attribute in ((model, "name"), (getattr(model, "hf", None), "name_or_path")):
        name = getattr(holder, attribute, None)
        if isinstance(name, str) and name:
            path = Path(name)
            return f"organism:{path.name}" if path.parent.parts[-2:] == ("organisms", "weights") else name
    return type(getattr(model, "hf", model)).__name__


def model_fingerprint(model: HookedVLM) -> str:
    """Changes when the weights do: names, shapes and two moments of every parameter."""
    parts = []
    with torch.no_grad():
        for name, parameter in model.hf.named_parameters():
            value = parameter.detach().flatten()[:4096].float()
            parts.append(
                (
                    name,
                    tuple(parameter.shape),
                    f"{float(value.sum()):.5e}",
                    f"{float(value.square().sum()):.5e}",
                )
            )
    return fingerprint(parts)


def data_fingerprint(examples: Sequence[Example]) -> str:
    """Changes when the drawn examples, their prompts or answers do."""
    return fingerprint([(e.id, e.prompt, list(e.answers), e.label) for e in examples])


def draw(data: Dataset, task: str, n: int, seed: int) -> list[Example]:
    """Up to ``n`` seeded examples of a task; none when the data has no such task.

    Raises:
        DataError: an example without a picture or answers, named by id.
    """
    if task not in data.tasks or n == 0:
        return []
    examples = list(data.examples(task, limit=n, seed=seed))
    for e in examples:
        if e.image is None:
            raise DataError(f"data {data.name!r}: {task} example {e.id!r} has no picture")
        if not e.answers and e.label is None:
            raise DataError(f"data {data.name!r}: {task} example {e.id!r} has no answer to compare with")
    return examples


def prepare(model: HookedVLM, examples: Sequence[Example], start: int = 0) -> VLMInputs:
    """Inputs of a batch; random selectors draw by the example's number in the study, not in the batch."""
    images = [e.image for e in examples]
    inputs = model.prepare(images=images, text=[e.prompt for e in examples])
    numbers = tuple(range(start, start + len(examples)))
    return dataclasses.replace(inputs, tokens=dataclasses.replace(inputs.tokens, example_ids=numbers))


def auto_batch_size(model: HookedVLM, example: Example) -> int:
    """A batch whose largest tensor stays bounded: 64 for small models, fewer for long prompts."""
    n_pos = prepare(model, [example]).tokens.n_pos
    largest = max(model.cfg.n_heads * n_pos**2, n_pos * int(model.cfg.d_vocab))
    return max(1, min(64, _BUDGET // max(1, largest)))


def chunks(examples: Sequence[Item], size: int) -> Iterator[tuple[int, int, Sequence[Item]]]:
    """``(chunk number, index of its first example, examples)``."""
    for number, start in enumerate(range(0, len(examples), size)):
        yield number, start, examples[start : start + size]


def chunks_by_length(model: HookedVLM, examples: Sequence[Example], size: int) -> list[Chunk]:
    """Batches of prompts of one length, short ones first, so that none is padded and all can share a prefix.

    An example keeps its number whatever the batch size.
    """
    lengths = [len(model.tokenizer(e.prompt)["input_ids"]) for e in examples]
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    parts: list[list[int]] = []
    for place, i in enumerate(order):
        if not parts or len(parts[-1]) == size or lengths[order[parts[-1][0]]] != lengths[i]:
            parts.append([])
        parts[-1].append(place)
    return [(n, part[0], [examples[order[place]] for place in part]) for n, part in enumerate(parts)]


class Labels:
    """First token of a label when it continues a prompt, with a space before it where the model writes one.

    After a word there is one; none after a line break or a special token, with which a user's turn may end
    (``[/INST]``, ``<|im_start|>assistant`` and a line break).
    """

    def __init__(self, model: HookedVLM) -> None:
        self._tokenizer = model.tokenizer
        self._known: dict[tuple[str, str], int] = {}

    def first_token(self, prompt: str, label: str) -> int:
        """Token id.

        Raises:
            InputError: the label adds no token to the prompt.
        """
        stem = prompt.rsplit("<image>", 1)[-1].strip(" ") or "is"
        key = (stem, label)
        if key not in self._known:
            before = self._ids(stem)
            special = getattr(self._tokenizer, "added_tokens_decoder", {})
            gap = "" if stem[-1].isspace() or (before and before[-1] in special) else " "
            after = self._ids(stem + gap + label)
            same = 0
            while same < min(len(before), len(after)) and before[same] == after[same]:
                same += 1
            if same == len(after):
                raise InputError(f"label {label!r} adds no token after {stem!r}; choose another label")
            self._known[key] = int(after[same])
        return self._known[key]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def labels_of(example: Example) -> tuple[str, ...]:
    """The accepted class names of an example."""
    return tuple(dict.fromkeys(([example.label] if example.label else []) + list(example.answers)))


def kinds_of_knockout(how: str) -> tuple[How, ...]:
    """``"both"`` means the Narrow Gate paper's first, then the renormalising one.

    Raises:
        InterventionError: any other word.
    """
    if how not in ("zero", "mask", "both"):
        raise InterventionError(f"how={how!r} is no kind of knockout; choose 'zero', 'mask' or 'both'")
    return ("zero", "mask") if how == "both" else ("zero",) if how == "zero" else ("mask",)


def inference() -> Any:
    """No gradients are kept during a study."""
    return torch.inference_mode()


class Progress:
    """A bar with the time left over all stages of a study."""

    def __init__(self, total: int, enabled: bool) -> None:
        self.enabled, self.done = enabled, 0
        form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed} gone, {remaining} left]"
        self._bar = tqdm(total=total, disable=not enabled, bar_format=form, dynamic_ncols=True)

    def step(self, what: str, n: int = 1) -> None:
        """``n`` units of work are done."""
        self.done += n
        self._bar.set_description_str(what, refresh=False)
        self._bar.update(n)

    def say(self, what: str) -> None:
        """What is being done now."""
        self._bar.set_description_str(what)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def data_uri(image: Image, longest: int = 256) -> str:
    """The picture as a PNG data URI, at most ``longest`` pixels a side; small ones are enlarged without
    blur."""
    from PIL import Image as PILImage

    picture = image.convert("RGB")
    scale = longest / max(picture.size)
    if scale < 1:
        picture.thumbnail((longest, longest))
    elif scale >= 2:
        factor = int(scale)
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, PILImage.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
