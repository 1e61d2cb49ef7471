"""The work of a table of heads, batch by batch, each kept in a run when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.errors import InputError
from gatelens.executors import Executor
from gatelens.model import HookedVLM
from gatelens.readouts.heads import columns
from gatelens.readouts.heads.columns import Columns, Settings
from gatelens.readouts.heads.prompts import Asked, Batch, batch_of, in_parts
from gatelens.readouts.heads.vocabulary import Writing
from gatelens.runs import Run
from gatelens.tokens import SelectorLike
from gatelens.units import Done, Unit, measured, numbered

OF_BATCH: dict[str, Callable[[Batch, Settings], Columns]] = {
    "attention": columns.attention,
    "localisation": columns.localisation,
    "sinks": columns.sinks,
    "attribution": columns.attribution,
    "knockout": columns.knockout,
    "regression": columns.regression,
}


@dataclass(frozen=True)
class HeadsWork:
    """What is measured of which examples.

    Attributes:
        queries: selector of the rows whose attention is looked at.
        chosen: the parts of the table.
        settings, writing: what they need, and what they gather over all batches.
    """

    model: HookedVLM
    asked: Sequence[Asked]
    queries: SelectorLike
    chosen: Sequence[str]
    settings: Settings
    writing: Writing

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, heads."""
        return int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)

    def measured(self, run: Run, progress: bool, executor: Executor) -> Columns:
        """All columns, the examples in the order of the batches; the rest is gathered in settings and writing."""
        n_heads, subsets = self.shape[0] * self.shape[1], self.settings.subsets
        runs = {"knockout": n_heads + 1, "regression": 0 if subsets is None else len(subsets)}
        each = sum(runs.get(part, 1) for part in self.chosen)
        units = [
            Unit(numbered(i), each * len(part), partial(self._tables, part, runs))
            for i, part in enumerate(in_parts(self.model, self.asked))
        ]
        made: dict[str, list[Tensor]] = {}
        for tables in measured(run, "batches", units, progress, ("heads", "run"), executor):
            for name in tables["columns"].columns[1:]:
                values = torch.from_numpy(tables["columns"][name].to_numpy(copy=True))
                made.setdefault(name, []).append(values.view(-1, *self.shape))
            self._gather(tables)
        return {name: torch.cat(values) for name, values in made.items()}

    @torch.no_grad()
    def _tables(self, part: Sequence[int], runs: dict[str, int], done: Done) -> dict[str, pd.DataFrame]:
        """One batch: ``columns`` by example and head, and what the parts gather."""
        batch = batch_of(self.model, self.asked, part, self.queries)
        own = replace(self.settings, subset_values=[], sinks=[], done=lambda n: done(n * len(part)))
        writing = Writing(self.model, self.writing.of, self.writing.top)
        rows = np.repeat(np.array(part), self.shape[0] * self.shape[1])
        table = {"example": rows}
        for one in self.chosen:
            if one == "vocabulary":
                writing.add(batch)
            else:
                found = OF_BATCH[one](batch, own)
                table |= {name: values.cpu().flatten().numpy() for name, values in found.items()}
            if one not in runs:
                own.done(1)
        tables = {"columns": pd.DataFrame(table)}
        if own.sinks:
            tables["sinks"] = pd.DataFrame(own.sinks)
        if own.subset_values:
            tables["subsets"] = pd.DataFrame(own.subset_values[0].T.numpy()).rename(columns=str)
        if "vocabulary" in self.chosen:
            tables |= writing.tables()
        return tables

    def _gather(self, tables: dict[str, pd.DataFrame]) -> None:
        if "sinks" in tables:
            self.settings.sinks.extend(tables["sinks"].to_dict("records"))
        if "subsets" in tables:
            self.settings.subset_values.append(torch.from_numpy(tables["subsets"].to_numpy().T.copy()))
        if "written" in tables:
            self.writing.gather(tables, self.shape, len(tables["columns"]["example"].unique()))

    def mean_outputs(self, run: Run) -> dict[int, Float[Tensor, "head d_head"]]:
        """The mean of ``z`` over the positions that are replaced, of all examples, by layer."""
        unit = Unit("all", len(self.asked), self._means)
        (tables,) = measured(run, "means", [unit], False)
        values = torch.from_numpy(tables["means"]["value"].to_numpy(copy=True))
        return dict(enumerate(values.view(*self.shape, -1)))

    def _means(self, done: Done) -> dict[str, pd.DataFrame]:
        sums: dict[int, Tensor] = {}
        count, at = 0, self.settings.ablate_at
        for part in in_parts(self.model, self.asked):
            batch = batch_of(self.model, self.asked, part, self.queries)
            mask = batch.mask(at)
            count += int(mask.sum())

            def add(z: Tensor, hook: Any, mask: Tensor = mask) -> None:
                layer = int(hook.name.split(".")[1])
                sums[layer] = sums.get(layer, 0) + z.detach()[mask.to(z.device)].double().sum(0)

            hooks = [(f"blocks.{layer}.attn.hook_z", add) for layer in range(self.shape[0])]
            self.model.forward_step({**batch.inputs.tensors, "logits_to_keep": 1}, hooks)
            done(len(part))
        if not count:
            raise InputError(f"ablate_at={at!r} selects no position: name some that the prompts have")
        means = torch.stack([sums[layer] for layer in range(self.shape[0])]) / count
        return {"means": pd.DataFrame({"value": means.float().cpu().flatten().numpy()})}
