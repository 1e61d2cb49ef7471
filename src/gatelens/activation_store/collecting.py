"""``gl.collect``: run a model over data and keep what chosen positions hold at chosen sites.

Data is cut into shards of about 65,536 rows, each a unit of work: a shard that is whole is never computed again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.activation_store.files import DTYPES, RowWriter, write_table
from gatelens.activation_store.indexing import index_of
from gatelens.activation_store.layout import COLLECT, RECORD, activation_file, index_file, point_name
from gatelens.activation_store.records import Records, record_of
from gatelens.activation_store.store import ActivationStore
from gatelens.atomic_files import as_path, is_partial, written_whole
from gatelens.data import Example
from gatelens.errors import InputError, InterventionError, OutputError, shown
from gatelens.examples import prepare_numbered
from gatelens.executors import Executor, executing
from gatelens.identity import as_setting, content_fingerprint, model_settings
from gatelens.inputs import VLMInputs
from gatelens.interventions import SITES, hook_name
from gatelens.interventions.arguments import Layers, as_count, as_indices
from gatelens.interventions.base import resolve_indices, select
from gatelens.interventions.sites import check_site
from gatelens.model import HookedVLM
from gatelens.runs.manifest import MANIFEST
from gatelens.sweeps import batches_of, examples_of
from gatelens.tokens import SelectorLike
from gatelens.units import Done, Unit, measured, numbered, opened

STORED_SITES = (*SITES, "neuron")
LEFT_OVER = 600  # seconds after which the temporary file of a writer that was killed is removed
Batch: TypeAlias = tuple[
    Sequence[int], Sequence[Example]
]  # numbers of examples in the data, and they themselves


def collect(
    model: HookedVLM,
    data: Any,
    *,
    out: str | os.PathLike[str],
    sites: Sequence[str] | str = ("resid_post",),
    layers: Layers = None,
    at: SelectorLike = "image",
    dtype: str | torch.dtype = "float16",
    task: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    shard_rows: int = 65536,
    progress: bool = True,
    workers: int | None = None,
    ray: str | None = None,
) -> ActivationStore:
    """Run a model over data and keep the activations of chosen positions in a folder.

    The same call resumes where an earlier one stopped. Memory holds one batch; layers above the last one are not run.

    Args:
        data: a list of examples, or a data set (an object, or a name or folder as ``gl.data.load`` takes it).
        out: the folder. Other settings there are refused.
        sites: of :data:`gatelens.interventions.SITES`, or ``"neuron"``; with heads a row is [n_heads, d_head].
        layers: which blocks; None is all.
        at: selector of the positions, each of which is a row; ``image.mask(name)`` reads the example's own mask.
        dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"``, of what is kept.
        task, limit, seed: which examples of a data set, as :func:`gatelens.sweep` takes them.
        batch_size: how many examples of one length are a batch at most; None bounds memory.
        shard_rows: about how many rows a shard has; it ends with a batch.
        workers: how many processes collect.
        ray: the address of a Ray cluster whose nodes share the folder; ``workers`` is then how many actors.

    Raises:
        DataError: no such data or task, or two examples of one id.
        InterventionError: an unknown site or layer; ``at`` selects nothing in an example; ``dtype`` is too small.
        OutputError: the folder can't be written, is full, or holds something else, other settings or a damaged shard,
            or is not shared with a node.
        WorkerError: shards that failed on workers again and again; the others are kept.

    Example:
        >>> store = gl.collect(model, [scene], out=folder, layers=[2, 3], at="image | gate", progress=False)
        >>> store.points, len(store)
        ([('resid_post', 2), ('resid_post', 3)], 65)
    """
    points = _points(model, sites, layers)
    kept_as = _dtype(dtype)
    shard_rows = as_count(shard_rows, "shard_rows", error=InputError)
    if out is None:
        raise OutputError("out=None: activations are kept in a folder, name one")
    examples = examples_of(data, task, limit, seed)
    size, parts = batches_of(model, examples, batch_size)
    folder = as_path(out)
    kept = _Kept(model, points, at, kept_as, folder.absolute())  # a worker may run in another folder
    with executing(workers, ray) as executor:
        _Collecting(kept, examples, size, parts, shard_rows).done(progress, executor)
    Records(folder).check_every()  # also of shards that an earlier call wrote
    return ActivationStore(folder)


def _points(model: HookedVLM, sites: Sequence[str] | str, layers: Layers) -> list[tuple[str, int]]:
    """The site and layer of each tensor that is kept."""
    names = [sites] if isinstance(sites, str) else list(sites)
    if not names:
        raise InputError("sites is empty, so nothing would be kept: give at least one, e.g. ['resid_post']")
    for site in names:
        check_site(site, STORED_SITES)
    chosen = resolve_indices(as_indices(layers, "layers"), int(model.cfg.n_layers), "layers", "collect")
    return [(site, layer) for site in dict.fromkeys(names) for layer in chosen]


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    known = {str(one): one for one in DTYPES.values()} | DTYPES
    found = known.get(dtype if isinstance(dtype, str) else str(dtype))
    if found is None:
        raise InputError(f"dtype={shown(dtype)} of a store: say 'float16', 'bfloat16' or 'float32'")
    return found


class _Enough(Exception):
    """Ends a pass once all that is kept has been computed."""


@dataclass(frozen=True)
class _Kept:
    """What is kept of each prompt, where: the part of a unit that all share."""

    model: HookedVLM
    points: Sequence[tuple[str, int]]
    at: SelectorLike
    dtype: torch.dtype
    folder: Path

    def selected(self, inputs: VLMInputs, examples: Sequence[Example]) -> Bool[Tensor, "batch pos"]:
        mask = select(inputs.tokens, self.at, "collect")
        for row, example in zip(mask, examples, strict=True):
            if not bool(row.any()):
                raise InterventionError(
                    f"at={shown(self.at)} selects no position of example {example.id!r}; name one it has, or "
                    "leave the example out"
                )
        return mask

    def measure(self, name: str, batches: Sequence[Batch], done: Done) -> dict[str, pd.DataFrame]:
        """One shard: its files, written as they are computed, then the record of them."""
        if not (self.folder / MANIFEST).is_file():
            raise OutputError(
                f"{str(self.folder)!r} is not there on {platform.node()}: give out= a folder that all machines share"
            )
        index: list[pd.DataFrame] = []
        with self._writers(name) as writers:
            for part, examples in batches:
                inputs = prepare_numbered(self.model, examples, part)
                mask = self.selected(inputs, examples)
                self._run(inputs, mask, writers)
                index.append(index_of(inputs, mask, part, examples))
                done(len(part))
        table = pd.concat(index, ignore_index=True)
        words = ["example", "label", "role", "token", "image_id"]
        rows = index_file(self.folder, name)
        write_table(rows, table.astype(dict.fromkeys(words, "category")))
        files = [rows, *(activation_file(self.folder, point, name) for point in self.points)]
        return {RECORD: record_of(self.folder, files, len(table), sum(len(part) for part, _ in batches))}

    @contextmanager
    def _writers(self, name: str) -> Iterator[Mapping[tuple[str, int], RowWriter]]:
        """A file for each site and layer, all of which take their names at the end; none where something fails."""
        files = {point: activation_file(self.folder, point, name) for point in self.points}
        try:
            with ExitStack() as stack:
                writers = {}
                for point, file in files.items():
                    temporary = stack.enter_context(written_whole(file))
                    writers[point] = RowWriter(stack.enter_context(open(temporary, "wb")), self.dtype)
                yield writers
                for writer in writers.values():
                    writer.finish()
        except BaseException:
            for file in files.values():  # folders made for nothing, so that the run can be taken back
                with contextlib.suppress(OSError):
                    file.parent.rmdir()
                    file.parent.parent.rmdir()
            raise

    def _run(
        self, inputs: VLMInputs, mask: Bool[Tensor, "batch pos"], writers: Mapping[tuple[str, int], RowWriter]
    ) -> None:
        """One pass, as far as the last activation that is kept."""
        example, position = mask.nonzero(as_tuple=True)
        missing = set(self.points)

        def keeping(point: tuple[str, int]) -> Callable[..., None]:
            def keep(tensor: Tensor, hook: Any) -> None:
                rows = tensor.detach()[example.to(tensor.device), position.to(tensor.device)]
                writers[point].add(self._as_kept(rows, point))
                missing.discard(point)
                if not missing:
                    raise _Enough

            return keep

        hooks = [(hook_name(*point), keeping(point)) for point in self.points]
        with torch.inference_mode(), contextlib.suppress(_Enough):
            self.model.forward_step({**inputs.tensors, "logits_to_keep": 1}, hooks)
        if missing:
            raise InterventionError(f"{hook_name(*min(missing))} is not computed in this model: leave it out")

    def _as_kept(self, rows: Float[Tensor, "n ..."], point: tuple[str, int]) -> Float[Tensor, "n ..."]:
        kept = rows.to(device="cpu", dtype=self.dtype)
        if not bool(kept.isfinite().all()):
            largest = float(rows.abs().max())
            fix = "the model computes numbers that are not finite there"
            if bool(rows.isfinite().all()):
                word, most = str(self.dtype).removeprefix("torch."), torch.finfo(self.dtype).max
                fix = f"{word} ends at {most:.6g}: say dtype='bfloat16' or 'float32'"
            raise InterventionError(f"{point_name(*point)} reaches {largest:.3g}; {fix}")
        return kept


@dataclass(frozen=True)
class _Collecting:
    """What is kept of which examples, as data."""

    kept: _Kept
    examples: Sequence[Example]
    size: int
    parts: Sequence[Sequence[int]]
    shard_rows: int

    def done(self, progress: bool, executor: Executor) -> None:
        folder = self.kept.folder
        with opened(folder, COLLECT, self.settings) as run:
            units = [
                Unit(
                    numbered(n),
                    sum(map(len, parts)),
                    partial(self.kept.measure, numbered(n), self._batches(parts)),
                )
                for n, parts in enumerate(self._shards())
            ]
            measured(run, COLLECT, units, progress, ("collect", "example"), executor)
        _sweep_up(folder)

    def settings(self) -> dict[str, Any]:
        at = self.kept.at
        return {
            **model_settings(self.kept.model),
            "n": len(self.examples),
            "examples": content_fingerprint(list(self.examples)),
            "batch_size": self.size,
            "shard_rows": self.shard_rows,
            "at": as_setting(at if isinstance(at, str) else str(at)),
            "points": [point_name(*point) for point in self.kept.points],
            "stored_dtype": str(self.kept.dtype).removeprefix("torch."),
        }

    def _batches(self, parts: Sequence[Sequence[int]]) -> list[Batch]:
        return [(part, [self.examples[i] for i in part]) for part in parts]

    def _shards(self) -> list[list[Sequence[int]]]:
        """The batches of each shard. How many rows a prompt has is read off one example of each length."""
        rows: dict[tuple[bool, int], int] = {}
        shards: list[list[Sequence[int]]] = []
        filled = self.shard_rows
        model = self.kept.model
        for part in self.parts:
            first = self.examples[part[0]]
            key = (first.image is None, len(model.tokenizer(first.prompt)["input_ids"]))
            if key not in rows:
                inputs = prepare_numbered(model, [first], part[:1])
                rows[key] = int(self.kept.selected(inputs, [first]).sum())
            if filled + rows[key] * len(part) > self.shard_rows:
                shards.append([])
                filled = 0
            shards[-1].append(part)
            filled += rows[key] * len(part)
        return shards


def _sweep_up(folder: Path) -> None:
    """Delete parts of files that a killed writer left."""
    for part in folder.glob("*/*/.*"):
        with contextlib.suppress(OSError):  # another process was quicker
            if is_partial(part) and part.is_file() and time.time() - part.stat().st_mtime > LEFT_OVER:
                part.unlink()
