"""What a run says of its model and data: names, places, and fingerprints that change when they do."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gatelens.bridge.weights import named_values, quantisation, shape_of
from gatelens.data import Dataset, Example, load
from gatelens.data.loading import from_anywhere
from gatelens.errors import DataError, ModelError
from gatelens.model import HookedVLM
from gatelens.runs.manifest import fingerprint
from gatelens.shipped_organisms import ORGANISM, organism_name


def resolve_model(model: HookedVLM | str | Path, **options: Any) -> HookedVLM:
    """The model itself, or the one of that name or in that folder."""
    if isinstance(model, str | Path):
        return HookedVLM.from_pretrained(str(model), **options)
    if not hasattr(model, "hf"):
        raise ModelError(f"model={model!r} is not a model: give a HookedVLM, a name, or a folder")
    return model


def resolve_data(data: Dataset | str | Path, skip_bad: bool = False) -> Dataset:
    """The data set itself, or the one of that name or folder."""
    if isinstance(data, str | Path):
        return load(data, skip_bad=skip_bad)
    if not callable(getattr(data, "examples", None)):
        raise DataError(f"data={data!r} is not a data set: give one, its name, or a folder")
    return data


def provenance(data: Dataset) -> dict[str, Any]:
    """For the manifest: where the data came from, if there is a choice, and the bad rows skipped, if there were any."""
    where = getattr(data, "where", "")
    facts: dict[str, Any] = {"data_from": where} if where else {}
    rows = [f"{r['data']} row {r['row']}: {r['why']}" for r in getattr(data, "skipped", ())]
    return {**facts, "bad_rows_left_out": {"n": len(rows), "rows": rows}} if rows else facts


def given(model: Any, data: Any) -> dict[str, str]:
    """For the manifest: what loads model and data again from any folder, for those that were given by name."""
    names: dict[str, str] = {}
    if isinstance(model, str | Path):
        names["model_given"] = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    if isinstance(data, str | Path):
        names["data_given"] = from_anywhere(data)
    return names


def model_name(model: HookedVLM | str | Path) -> str:
    """How the run calls the model: its name where it has one, else its class."""
    if isinstance(model, str | Path):
        return str(model)
    for holder, attribute in ((model, "name"), (getattr(model, "hf", None), "name_or_path")):
        name = getattr(holder, attribute, None)
        if isinstance(name, str) and name:
            organism = organism_name(name)
            return name if organism is None else ORGANISM + organism
    return type(getattr(model, "hf", model)).__name__


def model_fingerprint(model: HookedVLM) -> str:
    """Changes when the weights do: names, shapes and two moments of every parameter, wherever it is.

    Of a weight in 4 bits the codes are counted, as bitsandbytes changes their order when the layer first runs.
    """
    parts = []
    for name, parameter, values in named_values(model.hf):
        moments = []
        for value in values:
            few = value.flatten()[:4096].float()
            moments += [f"{float(moment):.5e}" for moment in (few.sum(), few.square().sum())]
        parts.append((name, shape_of(parameter), *moments))
    return fingerprint(parts)


def precision(model: HookedVLM) -> dict[str, Any]:
    """For the manifest: the dtype of the weights, and how they are quantised where they are."""
    quantised = quantisation(model.hf)
    return {"dtype": str(model.dtype), **({"quantisation": str(quantised)} if quantised else {})}


def model_settings(model: HookedVLM) -> dict[str, Any]:
    """What a run over data says of its model."""
    return {"model": model_name(model), "weights": model_fingerprint(model), **precision(model)}


def as_setting(value: Any) -> Any:
    """A value in the settings of a run: itself where it reads well in JSON, else its fingerprint."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return list(value)
    return repr(value) if isinstance(value, range | slice) else content_fingerprint(value)


def data_fingerprint(examples: Sequence[Example]) -> str:
    """Changes when the drawn examples, their prompts or answers do."""
    return fingerprint([(e.id, e.prompt, list(e.answers), e.label) for e in examples])


def content_fingerprint(value: Any) -> str:
    """Twelve hex digits that change when a value does, whatever it is made of: tensors, pictures, objects, functions.

    A function is its own code, its defaults and what it closes over; not what it calls.
    """
    digest = hashlib.sha256()
    for part in _content(value, frozenset()):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def _content(value: Any, within: frozenset[int]) -> Iterator[bytes]:
    yield type(value).__qualname__.encode()
    if id(value) in within:
        return
    within |= {id(value)}
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        yield from (f"{value.dtype} {tuple(value.shape)}".encode(), raw.numpy().tobytes())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield from (f"{value.dtype} {value.shape}".encode(), np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Image.Image):
        yield from (f"{value.mode} {value.size}".encode(), value.tobytes())
    elif isinstance(getattr(value, "hf", value), torch.nn.Module):
        holder: Any = value if hasattr(value, "hf") else types.SimpleNamespace(hf=value)
        yield model_fingerprint(holder).encode()
    elif (
        isinstance(value, str | bytes | int | float | complex | range | slice | Path | type) or value is None
    ):
        yield repr(value).encode()
    else:
        for part in _parts(value):
            yield from _content(part, within)


def _parts(value: Any) -> list[Any]:
    """What a value is made of."""
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, *cells]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Sequence | np.ndarray):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, f.name) for f in dataclasses.fields(value)]
    if hasattr(value, "__dict__"):
        return [vars(value)]
    return [re.sub(r" at 0x[0-9a-f]+", "", repr(value))]
