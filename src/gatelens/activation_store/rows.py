"""Rows of many files: consecutive ones are read, others are gathered through memory maps.

Reading from a file is quicker than copying out of a map, which pays for each page of it once; but it is one call a run
of rows, too slow for single rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gatelens.activation_store.files import TAGS, TENSOR


@dataclass(frozen=True)
class RowFile:
    """A file that :class:`gatelens.activation_store.files.RowWriter` wrote.

    Attributes:
        offset: bytes before the numbers.
        shape: of its tensor, [row, ...].
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def opened(cls, path: Path) -> RowFile:
        """Read its header, no numbers.

        Raises:
            ValueError, KeyError, TypeError: the header cannot be read.
            OSError: the file cannot be read.
        """
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length < 1 << 20 else {}
        about = header[TENSOR]
        dtype = {tag: dtype for dtype, tag in TAGS.items()}[about["dtype"]]
        return cls(path, 8 + length, tuple(int(n) for n in about["shape"]), dtype)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, first: int, out: Float[Tensor, "row ..."]) -> None:
        """Fill ``out`` with the rows from ``first`` on. Raises OSError where the file ends before."""
        room = memoryview(out.view(torch.uint8).numpy().data).cast("B")
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset + first * self.row_bytes)
            while len(room):
                n = file.readinto(room)
                if not n:
                    raise OSError(0, "it ends before its last row")
                room = room[n:]

    def mapped(self) -> Float[Tensor, "row ..."]:
        """All its rows; what is not touched is not read."""
        # copy on write, as torch warns of memory that cannot be written; nothing is
        raw = np.memmap(self.path, dtype=np.uint8, mode="c", offset=self.offset)
        return torch.from_numpy(raw).view(self.dtype).view(self.shape)


class JoinedRows:
    """The rows of several files, numbered one file after the other. A file is opened when a row of it is first read.

    Args:
        opened: opens the file of a number.
        starts: the number of the first row of each file, and at last how many rows there are.
    """

    def __init__(self, opened: Callable[[int], RowFile], starts: np.ndarray) -> None:
        self._opened, self._starts = opened, starts
        self._files: dict[int, RowFile] = {}
        self._space = _AddressSpace(starts)

    def between(self, start: int, stop: int) -> Float[Tensor, "row ..."]:
        """A copy of the rows from ``start`` to before ``stop``, one at least."""
        at = start
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        file = self._file(shard)
        out = torch.empty(stop - start, *file.shape[1:], dtype=file.dtype)
        while at < stop:
            end = min(stop, int(self._starts[shard + 1]))
            self._file(shard).read(at - int(self._starts[shard]), out[at - start : end - start])
            at, shard = end, shard + 1
        return out

    def gathered(self, numbers: Int64[np.ndarray, " row"]) -> Float[Tensor, "row ..."]:
        """A copy of these rows, in this order. The numbers are not checked."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard in self._space.lacks(shards if len(shards) else np.array([0])):
            self._space.add(shard, self._file(shard).mapped())
        return self._space.gathered(shards, numbers)

    def _file(self, shard: int) -> RowFile:
        if shard not in self._files:
            self._files[shard] = self._opened(shard)
        return self._files[shard]


class _AddressSpace:
    """Maps of files as one tensor.

    A process has one address space, so all maps, wherever the system puts them, are rows of a tensor that begins at the
    lowest of them: rows of many files are gathered by one call, without a copy for each file. Between the maps lie
    addresses that belong to no row; no number of a row leads there.
    """

    def __init__(self, starts: np.ndarray) -> None:
        self._starts = starts
        self._maps: dict[int, Tensor] = {}
        self._has = np.zeros(len(starts) - 1, dtype=bool)
        # of each file: where row 0 of all would be, if this file began there
        self._origin = np.zeros(len(starts) - 1, dtype=np.int64)
        self._step = 1  # places from a row to the next
        self._all: Tensor | None = None

    def lacks(self, shards: Int64[np.ndarray, " row"]) -> list[int]:
        """Those of these files that are not mapped."""
        return np.unique(shards[~self._has[shards]]).tolist()

    def add(self, shard: int, rows: Float[Tensor, "row ..."]) -> None:
        self._maps[shard], self._has[shard], self._all = rows, True, None

    def gathered(self, shards: np.ndarray, numbers: np.ndarray) -> Float[Tensor, "row ..."]:
        every = self._joined() if self._all is None else self._all
        return torch.index_select(every, 0, torch.from_numpy(self._origin[shards] + numbers * self._step))

    def _joined(self) -> Tensor:
        """The tensor, its rows one place after the other: the least distance that leads to each row."""
        low = min(self._maps.values(), key=Tensor.data_ptr)
        row = low[0].nbytes
        away = {shard: one.data_ptr() - low.data_ptr() for shard, one in self._maps.items()}
        place = math.gcd(row, *away.values())  # bytes
        self._step = row // place
        for shard, distance in away.items():
            self._origin[shard] = distance // place - int(self._starts[shard]) * self._step
        last = max(away[shard] + one.nbytes for shard, one in self._maps.items()) - row
        numbers = low.view(torch.int16 if low.itemsize == 2 else torch.int32).numpy()
        shape, strides = (1 + last // place, *numbers.shape[1:]), (place, *numbers.strides[1:])
        self._all = torch.from_numpy(np.lib.stride_tricks.as_strided(numbers, shape, strides)).view(low.dtype)
        return self._all
