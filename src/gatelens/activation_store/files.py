"""The files of a store: safetensors written row by row; Parquet tables; what tells whether a file is as it was written.

A safetensors file is eight bytes with the length of a header, the header as JSON, then the numbers. The header says how
many rows there are, which is known last, so room for it is left at the beginning and filled at the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.atomic_files import written_whole
from gatelens.errors import OutputError

TENSOR = "activations"  # the name of the one tensor of a file
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
TAGS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_HEADER = 512  # bytes before the numbers


class RowWriter:
    """Writes a tensor of rows to an open file, some rows at a time; none of them stays in memory."""

    def __init__(self, file: BinaryIO, dtype: torch.dtype) -> None:
        self.file, self.dtype = file, dtype
        self.n, self.shape = 0, ()  # type: tuple[int, tuple[int, ...]]
        file.write(b" " * _HEADER)

    def add(self, rows: Float[Tensor, "n ..."]) -> None:
        """Append rows of the file's dtype, on the CPU."""
        self.shape = tuple(rows.shape[1:])
        self.n += len(rows)
        self.file.write(rows.contiguous().view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Write the header; the file is whole then."""
        size = self.n * int(np.prod(self.shape)) * self.dtype.itemsize
        about = {"dtype": TAGS[self.dtype], "shape": [self.n, *self.shape], "data_offsets": [0, size]}
        header = json.dumps({TENSOR: about}).encode().ljust(_HEADER - 8)
        self.file.seek(0)
        self.file.write(len(header).to_bytes(8, "little") + header)


def write_table(file: Path, table: pd.DataFrame) -> None:
    """A table as Parquet, whole or not at all."""
    with written_whole(file) as temporary:
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), temporary, compression="zstd")


def read_tables(files: Sequence[Path]) -> pd.DataFrame:
    """The tables of these files, one under the other.

    Raises:
        OutputError: one is missing or damaged; it is named.
    """
    parts = []
    for file in files:
        try:
            parts.append(pq.ParquetFile(file).read())
        except (OSError, pa.ArrowInvalid) as error:
            raise OutputError(
                f"{str(file)!r} is missing or damaged; delete {str(file.parent)!r} and call gl.collect again with the "
                "same arguments"
            ) from error
    # one list of categories over all files, else pandas turns categories into objects
    return pa.concat_tables(parts).unify_dictionaries().to_pandas()
