"""What a run says of its model and data: names, places, and fingerprints that change when they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatelens.data import Dataset, Example, load
from gatelens.errors import DataError, ModelError
from gatelens.manifest import fingerprint
from gatelens.model import HookedVLM


def resolve_model(model: HookedVLM | str | Path, **options: Any) -> HookedVLM:
    """The model itself, or the one of that name or in that folder."""
    if isinstance(model, str | Path):
        return HookedVLM.from_pretrained(str(model), **options)
    if not hasattr(model, "hf"):
        raise ModelError(f"model={model!r} is no model: give a HookedVLM, a name, or a folder")
    return model


def resolve_data(data: Dataset | str | Path, skip_bad: bool = False) -> Dataset:
    """The data set itself, or the one of that name or folder."""
    if isinstance(data, str | Path):
        return load(data, skip_bad=skip_bad)
    if not callable(getattr(data, "examples", None)):
        raise DataError(f"data={data!r} is no data set: give one, its name, or a folder")
    return data


def provenance(data: Dataset) -> dict[str, Any]:
    """For the manifest: where the data came from, if there is a choice, and the bad rows skipped, if there were any."""
    where = getattr(data, "where", "")
    facts: dict[str, Any] = {"data_from": where} if where else {}
    rows = [f"{r['data']} row {r['row']}: {r['why']}" for r in getattr(data, "skipped", ())]
    return {**facts, "bad_rows_left_out": {"n": len(rows), "rows": rows}} if rows else facts


def model_name(model: HookedVLM | str | Path) -> str:
    """How the run calls the model: its name where it has one, else its class."""
    if isinstance(model, str | Path):
        return str(model)
    for holder, attribute in ((model, "name"), (getattr(model, "hf", None), "name_or_path")):
        name = getattr(holder, attribute, None)
        if isinstance(name, str) and name:
            path = Path(name)
            return f"organism:{path.name}" if path.parent.parts[-2:] == ("organisms", "weights") else name
    return type(getattr(model, "hf", model)).__name__


def model_fingerprint(model: HookedVLM) -> str:
    """Changes when the weights do: names, shapes and two moments of every parameter."""
    parts = []
    for name, parameter in model.hf.named_parameters():
        value = parameter.detach().flatten()[:4096].float()
        moments = [f"{float(moment):.5e}" for moment in (value.sum(), value.square().sum())]
        parts.append((name, tuple(parameter.shape), *moments))
    return fingerprint(parts)


def data_fingerprint(examples: Sequence[Example]) -> str:
    """Changes when the drawn examples, their prompts or answers do."""
    return fingerprint([(e.id, e.prompt, list(e.answers), e.label) for e in examples])
