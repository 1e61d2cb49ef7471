"""``gl.collect``: run a model over data and keep what chosen positions hold at chosen sites.

Data is cut into shards of about 65,536 rows, each a unit of work: a shard that is whole is never computed again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.activation_store.files import DTYPES, RowWriter, write_table
from gatelens.activation_store.layout import COLLECT, activation_file, index_file, point_name
from gatelens.activation_store.store import ActivationStore
from gatelens.atomic_files import as_path, is_partial, written_whole
from gatelens.data import Example
from gatelens.errors import InputError, InterventionError, OutputError, shown
from gatelens.examples import prepare_numbered
from gatelens.identity import as_setting, content_fingerprint, model_settings
from gatelens.inputs import VLMInputs
from gatelens.interventions import SITES, hook_name
from gatelens.interventions.arguments import Layers, as_count, as_indices
from gatelens.interventions.base import resolve_indices, select
from gatelens.interventions.sites import check_site
from gatelens.model import HookedVLM
from gatelens.sweeps import batches_of, examples_of
from gatelens.tokens import Role, SelectorLike
from gatelens.units import Done, Unit, measured, numbered, opened

STORED_SITES = (*SITES, "neuron")
LEFT_OVER = 600  # seconds after which the temporary file of a writer that was killed is removed
ROLE_NAMES = {int(role): role.name.lower() for role in Role}


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
) -> ActivationStore:
    """Run a model over data and keep the activations of chosen positions in a folder.

    As in ``gl.collect(model, "emoji-scenes", sites=["resid_post"], layers=[3], at="image", out="acts/")``. The same
    call goes on where an earlier one stopped; memory holds one batch. Layers above the last one asked for are not run.

    Args:
        model: the model.
        data: a list of examples, or a data set (an object, or a name or folder as ``gl.data.load`` takes it).
        out: the folder. Other settings there are refused.
        sites: see :mod:`gatelens.interventions.sites`; also ``"neuron"``. At sites with heads a row is
            [n_heads, d_head].
        layers: which blocks; None is all.
        at: selector of the positions; each is a row.
        dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"``, of what is kept.
        task, limit, seed, batch_size: as :func:`gatelens.sweep` takes them.
        shard_rows: how many rows a shard has, about: it ends with a batch.
        progress: show a progress bar with the time left.

    Raises:
        DataError: no such data or task, or two examples of one id.
        InterventionError: an unknown site or layer; ``at`` selects nothing in an example; an activation that ``dtype``
            cannot hold.
        OutputError: the folder can't be written, is full, or holds something else or other settings.
    """
    points = _points(model, sites, layers)
    kept = {str(one): one for one in DTYPES.values()} | DTYPES
    found = kept.get(dtype if isinstance(dtype, str) else str(dtype))
    if found is None:
        raise InputError(f"dtype={shown(dtype)} of a store: say 'float16', 'bfloat16' or 'float32'")
    shard_rows = as_count(shard_rows, "shard_rows", error=InputError)
    if out is None:
        raise OutputError("out=None: activations are kept in a folder, name one")
    examples = examples_of(data, task, limit, seed)
    size, parts = batches_of(model, examples, batch_size)
    work = _Collecting(model, examples, points, at, found, size, parts, shard_rows, as_path(out))
    return work.done(progress)


def _points(model: HookedVLM, sites: Sequence[str] | str, layers: Layers) -> list[tuple[str, int]]:
    """The site and layer of each tensor that is kept."""
    names = [sites] if isinstance(sites, str) else list(sites)
    if not names:
        raise InputError("sites is empty, so nothing would be kept: give at least one, e.g. ['resid_post']")
    for site in names:
        check_site(site, STORED_SITES)
    chosen = resolve_indices(as_indices(layers, "layers"), int(model.cfg.n_layers), "layers", "collect")
    return [(site, layer) for site in dict.fromkeys(names) for layer in chosen]


class _Enough(Exception):
    """Ends a pass once all that is kept has been computed."""


@dataclass(frozen=True)
class _Collecting:
    """What is kept of which examples, as data."""

    model: HookedVLM
    examples: Sequence[Example]
    points: Sequence[tuple[str, int]]
    at: SelectorLike
    dtype: torch.dtype
    size: int
    parts: Sequence[Sequence[int]]
    shard_rows: int
    folder: Path

    def done(self, progress: bool) -> ActivationStore:
        with opened(self.folder, COLLECT, self.settings) as run:
            units = [
                Unit(numbered(n), sum(map(len, batches)), partial(self.measure, numbered(n), batches))
                for n, batches in enumerate(self._shards())
            ]
            measured(run, COLLECT, units, progress, ("collect", "example"))
        self._sweep_up()
        return ActivationStore(self.folder)

    def settings(self) -> dict[str, Any]:
        return {
            **model_settings(self.model),
            "n": len(self.examples),
            "examples": content_fingerprint(list(self.examples)),
            "batch_size": self.size,
            "shard_rows": self.shard_rows,
            "at": as_setting(self.at if isinstance(self.at, str) else str(self.at)),
            "points": [point_name(*point) for point in self.points],
            "stored_dtype": str(self.dtype).removeprefix("torch."),
        }

    def _shards(self) -> list[list[Sequence[int]]]:
        """The batches of each shard. How many rows a prompt has is read off one example of each length."""
        rows: dict[tuple[bool, int], int] = {}
        shards: list[list[Sequence[int]]] = []
        filled = self.shard_rows
        for part in self.parts:
            first = self.examples[part[0]]
            key = (first.image is None, len(self.model.tokenizer(first.prompt)["input_ids"]))
            if key not in rows:
                rows[key] = int(self._selected(prepare_numbered(self.model, [first], part[:1]), part).sum())
            if filled + rows[key] * len(part) > self.shard_rows:
                shards.append([])
                filled = 0
            shards[-1].append(part)
            filled += rows[key] * len(part)
        return shards

    def _selected(self, inputs: VLMInputs, part: Sequence[int]) -> Bool[Tensor, "batch pos"]:
        mask = select(inputs.tokens, self.at, "collect")
        for row, i in zip(mask, part, strict=False):
            if not bool(row.any()):
                raise InterventionError(
                    f"at={shown(self.at)} selects no position of example {self.examples[i].id!r}; name one it has, or "
                    "leave the example out"
                )
        return mask

    def measure(self, name: str, batches: Sequence[Sequence[int]], done: Done) -> dict[str, pd.DataFrame]:
        """One shard: its files, written as they are computed, then the line that says it is whole."""
        index: list[pd.DataFrame] = []
        with self._writers(name) as writers:
            for part in batches:
                inputs = prepare_numbered(self.model, [self.examples[i] for i in part], part)
                mask = self._selected(inputs, part)
                self._run(inputs, mask, writers)
                index.append(self._index(inputs, mask, part))
                done(len(part))
        table = pd.concat(index, ignore_index=True)
        words = ["example", "label", "role", "token", "image_id"]
        write_table(index_file(self.folder, name), table.astype(dict.fromkeys(words, "category")))
        return {"shard": pd.DataFrame({"rows": [len(table)], "examples": [sum(map(len, batches))]})}

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

    def _index(self, inputs: VLMInputs, mask: Bool[Tensor, "batch pos"], part: Sequence[int]) -> pd.DataFrame:
        """Who each row is, in the order of the rows."""
        tokens = inputs.tokens
        example, position = mask.nonzero(as_tuple=True)
        padding = (tokens.roles == Role.PAD).sum(dim=1)
        of = [self.examples[part[i]] for i in example.tolist()]
        image = tokens.image_index[mask]
        box = tokens.box[mask].float()
        names = [[content_fingerprint(one) for one in pictures] for pictures in inputs.images]
        pairs = zip(example.tolist(), image.tolist(), strict=True)
        table = {
            "example": [one.id for one in of],
            "number": torch.tensor([part[i] for i in example.tolist()], dtype=torch.int32),
            "label": [one.label for one in of],
            "position": (position - padding[example]).to(torch.int32),
            "role": [ROLE_NAMES[role] for role in tokens.roles[mask].tolist()],
            "token": [tokens.strings[e][p] for e, p in zip(example.tolist(), position.tolist(), strict=True)],
            "image": image.to(torch.int32),
            "image_id": [names[e][i] if names and 0 <= i < len(names[e]) else None for e, i in pairs],
            **{name: getattr(tokens, name)[mask].to(torch.int32) for name in ("tile", "row", "col")},
            **{name: box[:, i] for i, name in enumerate(("x0", "y0", "x1", "y1"))},
        }
        return pd.DataFrame({k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in table.items()})

    def _sweep_up(self) -> None:
        """Delete parts of files that a killed writer left."""
        for part in self.folder.glob("*/*/.*"):
            with contextlib.suppress(OSError):  # somebody else was quicker
                if is_partial(part) and part.is_file() and time.time() - part.stat().st_mtime > LEFT_OVER:
                    part.unlink()
