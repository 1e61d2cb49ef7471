"""``gl.ActivationStore``: the rows of a folder that ``gl.collect`` filled, read through memory maps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.activation_store.files import DTYPES, read_tables
from gatelens.activation_store.layout import COLLECT, activation_file, index_file, point_name, point_of
from gatelens.activation_store.prompts import StoredPrompts
from gatelens.activation_store.records import Records
from gatelens.activation_store.rows import JoinedRows, RowFile
from gatelens.errors import DataError, InputError, InterventionError, OutputError, did_you_mean, shown
from gatelens.identity import model_fingerprint, model_name
from gatelens.interventions import hook_name
from gatelens.interventions.arguments import as_count
from gatelens.model import HookedVLM
from gatelens.runs import Run

RowNumbers: TypeAlias = range | np.ndarray  # a range has steps of 1


class ActivationStore:
    """Activations that :func:`gatelens.collect` kept in a folder. Opening it reads no activation.

    A row is one position of one example; its number counts the rows of the whole store from 0. ``store.index`` says
    what it is, :meth:`read` and :meth:`iterate` return its activations::

        store = gl.ActivationStore("acts")
        dogs = store.index.query("label == 'dog' and role == 'image'").index
        store.read(dogs)                                  # Float[row, d_model]
        for batch in store.iterate(4096, shuffle=0): ...  # Float[batch, d_model], for a trainer of SAEs

    Where it holds several sites or layers, ``site=`` and ``layer=`` choose one.

    Attributes:
        path: the folder.
        points: the (site, layer) pairs it holds.
        at: the selector of the positions, as text.
        dtype: of the stored activations.
        settings: of the call that made it, including the model.

    Raises:
        OutputError: no store there, one that is not finished, or a damaged one; the file is named.

    Example:
        >>> store = gl.collect(model, [scene], out=folder, layers=[3], progress=False)
        >>> store = gl.ActivationStore(folder)
        >>> store.read(store.index.query("role == 'image'").index).shape
        torch.Size([64, 128])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        run = Run.load(path)
        if run.study != COLLECT or run.path is None:
            raise OutputError(f"{str(path)!r} holds a run of {run.study!r}: give a folder gl.collect filled")
        self.path, self.settings = run.path, run.settings
        self.at: str = self.settings["at"]
        self.points = [point_of(name) for name in self.settings["points"]]
        self.dtype = DTYPES[self.settings["stored_dtype"]]
        self._records = Records(self.path)
        n_examples = self._records.n_examples
        if n_examples != self.settings["n"]:
            raise OutputError(
                f"{str(path)!r} holds {n_examples} of {self.settings['n']} examples: call gl.collect again to finish it"
            )
        self._joined: dict[tuple[str, int], JoinedRows] = {}

    def __len__(self) -> int:
        return int(self._records.starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:  # another process maps the files itself
        return ActivationStore, (self.path,)

    def __repr__(self) -> str:
        points = ", ".join(point_name(*point) for point in self.points)
        kind = self.settings["stored_dtype"]
        return f"ActivationStore({self.path!s:.120}: {len(self)} rows of {points:.200}, {kind}, at={self.at!r:.60})"

    @cached_property
    def index(self) -> pd.DataFrame:
        """What each row is, numbered as the rows are.

        Columns: ``example`` (its id), its ``number`` in the data and ``label``; ``position`` in the prompt, padding
        not counted; ``role``, ``token`` (the word there); ``image`` (which picture of the prompt, −1 outside) and
        ``image_id``, equal for equal pictures; its place ``tile``, ``row``, ``col`` (−1 without one) and
        ``x0 y0 x1 y1`` in pixels of the original picture.
        """
        files = [index_file(self.path, name) for name in self._records.shards]
        for file in files:
            self._records.check(file)
        table = read_tables(files)
        if len(table) != len(self):
            raise OutputError(
                f"{str(self.path)!r} is damaged: {len(table)} rows in its tables, {len(self)} expected"
            )
        return table

    def point(self, site: str | None = None, layer: int | None = None) -> tuple[str, int]:
        """The one (site, layer) that these arguments select.

        Raises:
            InputError: there is none, or there are several.
        """
        found = [p for p in self.points if site in (None, p[0]) and layer in (None, p[1])]
        if len(found) != 1:
            asked = f"site={shown(site)}, layer={shown(layer)}"
            known = ", ".join(point_name(*p) for p in self.points)
            raise InputError(
                f"{asked} {'is not' if not found else 'is not one'} in {self.path}: it has {known:.400}"
            )
        return found[0]

    def layers(self, site: str) -> tuple[int, ...]:
        """The layers it holds of a site. Raises InputError for a site it does not have."""
        found = tuple(layer for of, layer in self.points if of == site)
        return found or self.point(site)[1:]  # which raises

    def read(
        self, rows: Any = None, *, site: str | None = None, layer: int | None = None
    ) -> Float[Tensor, "row ..."]:
        """The activations of rows, in the order given, in the store's dtype; None is all rows.

        Args:
            rows: their numbers, a slice, or a mask with a truth value for each row.
            site, layer: which, where there are several.

        Raises:
            InputError: a row that is not there.
            OutputError: a shard is damaged; its file is named.
        """
        return self._rows(self.point(site, layer), self._numbers(rows))

    def iterate(
        self,
        batch: int = 4096,
        *,
        shuffle: int | None = None,
        rows: Any = None,
        site: str | None = None,
        layer: int | None = None,
        with_rows: bool = False,
    ) -> Iterator[Any]:
        """Batches of rows: Float[batch, ...] in the store's dtype, the last one with the rest.

        Args:
            batch: rows of each.
            shuffle: a seed draws a new order over the whole store; None keeps the rows' order.
            rows: only these, as :meth:`read` takes them.
            site, layer: which, where there are several.
            with_rows: give (activations, row numbers) instead.
        """
        size = as_count(batch, "batch", error=InputError)
        point, numbers = self.point(site, layer), self._numbers(rows)
        if shuffle is not None:
            seed = as_count(shuffle, "shuffle", least=0, error=InputError)
            numbers = np.random.default_rng(seed).permutation(_as_array(numbers))
        return self._batches(point, numbers, size, with_rows)

    def _batches(
        self, point: tuple[str, int], numbers: RowNumbers, size: int, with_rows: bool
    ) -> Iterator[Any]:
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            values = self._rows(point, part)
            yield (values, _as_array(part)) if with_rows else values

    def verify(self, progress: bool = True) -> None:
        """Read every file and compare it with the checksum it was written with.

        Reading does so only with files that were touched since then (changed, copied, restored), once in a process;
        bit rot on disk is only detected here. A shard that passes is trusted from then on.

        Raises:
            OutputError: files are missing, cut short or changed; it says which, and how they are collected again.
        """
        self._records.verify(progress)

    def example_means(
        self, site: str, layers: Sequence[int], examples: Sequence[str]
    ) -> dict[int, Float[Tensor, "example ..."]]:
        """By layer the mean of each example's rows, float64, in the order of the ids given, each once.

        Raises:
            DataError: an example that is not in the store.
        """
        self._check_examples(examples)
        codes = pd.Categorical(self.index["example"].astype(object), categories=list(examples)).codes
        chosen = np.flatnonzero(codes >= 0)
        counts = torch.from_numpy(np.bincount(codes[chosen], minlength=len(examples)))
        means = {}
        for layer in layers:
            point, sums = self.point(site, layer), torch.zeros(())
            for values, part in self._batches(point, chosen, 1 << 14, True):
                sums = sums if sums.ndim else torch.zeros(len(counts), *values.shape[1:], dtype=torch.float64)
                sums.index_add_(0, torch.from_numpy(codes[part].astype(np.int64)), values.double())
            means[layer] = sums / counts.view(-1, *[1] * (sums.ndim - 1))
        return means

    def prompts(
        self, model: HookedVLM, examples: str | Sequence[str], where: str | None = None
    ) -> StoredPrompts:
        """The rows of some examples, as the source of a patch: ``gl.patch(store.prompts(model, "e3"), "image", …)``.

        Args:
            model: whose activations they are; another's are refused.
            examples: one id for every prompt of the batch, or one each.
            where: which of their rows, as ``store.index.query`` takes it (``"role == 'image' and row < 2"``).

        Raises:
            DataError: an example that is not there, or without such a row.
            InterventionError: another model's store.
        """
        self.check_model(model)
        ids = [examples] if isinstance(examples, str) else list(examples)
        self._check_examples(ids)
        try:
            table = self.index if where is None else self.index.query(where)
        except Exception as error:  # pandas raises many kinds
            raise InputError(
                f"where={shown(where)} cannot be read: {' '.join(str(error).split())}"
            ) from error
        chosen = [table.index[table["example"] == one].to_numpy() for one in ids]
        empty = next((one for one, rows in zip(ids, chosen, strict=True) if not len(rows)), None)
        if empty is not None:
            raise DataError(f"example {empty!r} has no row where {where}; choose rows it has")
        readers = {hook_name(*point): partial(self._rows, point) for point in self.points}
        return StoredPrompts(model, self.index, chosen, readers)

    def check_model(self, model: HookedVLM) -> None:
        """Refuse a model whose activations these are not.

        Raises:
            InterventionError: its weights differ from those the store was made with.
        """
        if model_fingerprint(model) != self.settings["weights"]:
            raise InterventionError(
                f"{self.path} holds activations of {self.settings['model']}, and this model, {model_name(model)}, has "
                "other weights: collect its own"
            )

    def _check_examples(self, ids: Sequence[str]) -> None:
        known = set(self.index["example"].cat.categories)
        missing = next((one for one in ids if one not in known), None)
        if missing is not None or not ids:
            raise DataError(f"{self.path} has no example {missing!r}{did_you_mean(str(missing), known)}")

    def _numbers(self, rows: Any) -> RowNumbers:
        """Row numbers, checked."""
        if rows is None or isinstance(rows, slice):
            every = range(len(self))[slice(None) if rows is None else rows]
            return every if every.step == 1 else _as_array(every)
        found = np.asarray(rows)
        if found.dtype == bool and found.shape == (len(self),):
            return found.nonzero()[0]
        if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
            raise InputError(
                f"rows={shown(rows)}: give row numbers, a slice or a mask of {len(self)} truth values"
            )
        found = found.astype(np.int64)
        outside = found[(found < 0) | (found >= len(self))]
        if len(outside):
            raise InputError(f"row {int(outside[0])} is not in {self.path}: it has rows 0 to {len(self) - 1}")
        return found

    def _rows(self, point: tuple[str, int], numbers: RowNumbers) -> Float[Tensor, "row ..."]:
        """What these rows hold."""
        if point not in self._joined:
            self._joined[point] = JoinedRows(partial(self._opened, point), self._records.starts)
        rows = self._joined[point]
        try:
            if isinstance(numbers, range) and len(numbers):
                return rows.between(numbers.start, numbers.stop)
            return rows.gathered(_as_array(numbers))
        except OSError as error:  # it was taken away or cut short while it was open
            raise OutputError(
                f"cannot read rows of {self.path}: {error.strerror}; open the store again"
            ) from error

    def _opened(self, point: tuple[str, int], shard: int) -> RowFile:
        """The file of a shard, of which no number is read yet unless it has to be checked."""
        file = activation_file(self.path, point, self._records.shards[shard])
        self._records.check(file)
        try:
            found = RowFile.opened(file)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._records.damaged(file, "is damaged: its header cannot be read") from error
        n = int(self._records.starts[shard + 1] - self._records.starts[shard])
        size = found.offset + n * found.row_bytes
        if found.shape[:1] != (n,) or found.dtype != self.dtype or size != file.stat().st_size:
            raise self._records.damaged(file, f"is damaged: its header says {found.shape} of {found.dtype}")
        return found


def _as_array(numbers: RowNumbers) -> np.ndarray:
    return np.arange(numbers.start, numbers.stop, numbers.step) if isinstance(numbers, range) else numbers
