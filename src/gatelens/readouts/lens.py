"""The logit lens: what the model would say at any position if it stopped at any layer.

The residual stream goes through the model's own final norm, unembedding, and scale and soft cap of the logits
(nostalgebraist 2020, *interpreting GPT: the logit lens*), plain or after a learned affine map of each layer (the
tuned lens, Belrose et al. 2023, arXiv 2303.08112).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.bridge.residual import ROUNDING, output_logits
from gatelens.errors import InputError, ModelError
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from gatelens.readouts.labelled import LabelledTensor, position_labels
from gatelens.readouts.rows import Rows, Target, token_ids, word_of
from gatelens.tokens import Role, SelectorLike

ROWS_AT_ONCE = 64  # of logits: 64 x 65,536 in float32 are 16 MiB
Translator = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row d_model"]]


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens(LabelledTensor):
    """Float[layer, position, word]: log-probabilities in nats; ``n_layers`` as layer is the model's own output.

    A word is a target, or ``top 0`` … of a cell. ``.table`` says of each cell its ``word``, ``token_id`` and
    ``rank`` (0 is the top).

    Example:
        >>> lens = gl.logit_lens(model, inputs, at="image", layers=[4], top=1)
        >>> lens.tensor.shape
        torch.Size([1, 64, 1])
    """


@torch.no_grad()
def logit_lens(
    model: HookedVLM,
    inputs: VLMInputs,
    at: SelectorLike = "image | last",
    layers: int | Sequence[int] | None = None,
    targets: Target | Sequence[Target] | None = None,
    top: int = 5,
    translators: Sequence[Translator] | Mapping[int, Translator] | None = None,
) -> LogitLens:
    """What the model would say at chosen positions from the stream entering each layer.

    Args:
        inputs: the prompts.
        at: the positions to read, image tokens included.
        layers: the stream entering these; ``n_layers`` is what the final norm reads, so the model's own output.
            Negative ones count from there (-1). None is all.
        targets: tokens (words or ids) whose log-probability and rank to give; each one for all examples, or a
            tensor or list with one for each.
        top: how many of the most likely tokens to give.
        translators: for a tuned lens, a map of Float[row, d_model] for each layer (a list, or a mapping of layers),
            applied before the final norm; a layer without one is read plainly. None is the plain lens.

    Memory grows with rows x layers x (top + targets): the vocabulary is never held for more than 64 rows.

    Raises:
        InputError: no such layer or token, nothing is selected, or a translator makes no finite rows.
        ModelError: the last layer read in this way is not the model's own output.

    Example:
        >>> lens = gl.logit_lens(model, inputs, at="last", targets="sunflower")
        >>> lens.sel(target="top 0").table["word"].tolist()
        ['next', 'guitar', 'sunflower', 'sunflower', 'sunflower', 'sunflower', 'sunflower']
        >>> [int(rank) for rank in lens.sel(kind="target").table["rank"]]
        [20, 1, 0, 0, 0, 0, 0]
    """
    inputs = model.batch(inputs)
    chosen = _layers(layers, int(model.cfg.n_layers))
    rows = Rows(inputs, at)
    words, ids = _targets(model, targets, inputs.batch_size, rows)
    if type(top) is not int or not 0 <= top <= int(model.cfg.d_vocab) or not (top or words):
        raise InputError(f"top={top}: give how many tokens to read, or targets")
    tuned = _translators(translators, int(model.cfg.n_layers))
    streams = _streams(model, inputs, rows, chosen)
    cells = [_read(model, streams[layer], ids, top, tuned.get(layer)) for layer in chosen]
    return _result(model, inputs, rows, chosen, top, words, cells)


def _streams(
    model: HookedVLM, inputs: VLMInputs, rows: Rows, layers: Sequence[int]
) -> dict[int, Float[Tensor, "row d_model"]]:
    """The stream entering each layer at these rows.

    Raises:
        ModelError: what is read from the last stream is not what the model says.
    """
    n_layers = int(model.cfg.n_layers)
    output = f"blocks.{n_layers - 1}.hook_resid_post"
    names = {layer: output if layer == n_layers else f"blocks.{layer}.hook_resid_pre" for layer in layers}
    with model.lock:
        last = _last_rows(inputs)
        hooks = [*rows.hooks(set(names.values())), *last.hooks([output])]
        n_pos = inputs.tokens.n_pos
        keep = n_pos - int(last.position.max())
        logits, _ = model.forward_step({**inputs.tensors, "logits_to_keep": keep}, hooks)
    own = last.of_logits(logits, n_pos).float()
    read = output_logits(model.bridge, last.activations[output]).float().to(own.device)
    far = float((read - own).abs().max())
    written = own[own > torch.finfo(logits.dtype).min]  # Chameleon never writes image tokens
    if not far <= ROUNDING[logits.dtype == torch.float32] * (1 + float(written.abs().max())):
        raise ModelError(
            f"the last layer read by the lens is {far:.2g} from the model's own logits: this model does not make its "
            "logits as final norm, unembedding, scale and soft cap"
        )
    return {layer: rows.activations[name] for layer, name in names.items()}


def _last_rows(inputs: VLMInputs) -> Rows:
    """The last position that is not padding of any example; what was written after a prompt counts."""
    real = inputs.tokens.roles != Role.PAD
    column = int(real.any(dim=0).nonzero().max())
    at = torch.zeros_like(real)
    at[:, column] = real[:, column]
    return Rows(inputs, at)


def _result(
    model: HookedVLM,
    inputs: VLMInputs,
    rows: Rows,
    layers: list[int],
    top: int,
    words: list[str],
    cells: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> LogitLens:
    """The log-probabilities, tokens and ranks of every layer with their names."""
    values, tokens, ranks = (torch.stack(each) for each in zip(*cells, strict=True))
    kinds = ["top"] * top + ["target"] * len(words)
    axes = {
        "layer": pd.DataFrame({"layer": layers}),
        "position": position_labels(inputs.tokens, rows.example, rows.position),
        "word": pd.DataFrame({"target": [f"top {i}" for i in range(top)] + words, "kind": kinds}),
    }
    text = {int(token): word_of(model, int(token)) for token in tokens.unique()}
    said = np.vectorize(text.__getitem__, otypes=[object])(tokens.numpy())
    columns = {"word": said, "token_id": tokens.numpy(), "rank": ranks.numpy()}
    return LogitLens(values, axes, "log-probability (nats)", inputs.tokens, inputs.images, columns)


def _layers(layers: Any, n_layers: int) -> list[int]:
    given = layers.tolist() if hasattr(layers, "tolist") else layers
    wanted = (
        list(range(n_layers + 1))
        if given is None
        else list(given)
        if isinstance(given, Iterable)
        else [given]
    )
    if not wanted:
        raise InputError("layers is empty: give some, or None for all")
    for layer in wanted:
        if type(layer) is not int or not -n_layers - 1 <= layer <= n_layers:
            raise InputError(
                f"layers: {layer!r} is not one of 0 … {n_layers} ({n_layers} is the model's own output)"
            )
    return list(dict.fromkeys(layer % (n_layers + 1) for layer in wanted))


def _targets(
    model: HookedVLM, targets: Any, n_examples: int, rows: Rows
) -> tuple[list[str], Int[Tensor, "row target"]]:
    """The names of the targets, and the token of each row."""
    several = [] if targets is None else targets if isinstance(targets, (list, tuple, range)) else [targets]
    found: dict[str, Tensor] = {}
    for target in several:
        ids = token_ids(model, target, n_examples)
        named = isinstance(target, str) or len(set(ids.tolist())) == 1
        name = (target if isinstance(target, str) else word_of(model, int(ids[0]))) if named else "target"
        while name in found:
            name += "'"
        found[name] = ids[rows.example]
    none = torch.zeros(len(rows.example), 0, dtype=torch.long)
    return list(found), torch.stack(list(found.values()), 1) if found else none


def _translators(given: Any, n_layers: int) -> dict[int, Translator]:
    """The map of each layer that has one.

    Raises:
        InputError: they are not functions, or not of this many layers.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) and isinstance(given, Iterable):
        given = list(given)
        if len(given) not in (n_layers, n_layers + 1):
            raise InputError(
                f"{len(given)} translators: give one for each of the {n_layers} layers, or a mapping"
            )
        given = dict(enumerate(given))
    if not isinstance(given, Mapping) or not all(
        layer in range(n_layers + 1) and callable(one) for layer, one in given.items()
    ):
        raise InputError(
            f"translators: give a function for each layer (0 … {n_layers}), in a list or a mapping"
        )
    return dict(given)


def _translated(rows: Float[Tensor, "row d_model"], translate: Translator) -> Float[Tensor, "row d_model"]:
    made = translate(rows)
    if not isinstance(made, Tensor) or made.shape != rows.shape or not bool(made.isfinite().all()):
        raise InputError(f"a translator must make finite rows of shape {tuple(rows.shape)} of such rows")
    return made.to(rows.dtype)


def _read(
    model: HookedVLM,
    rows: Float[Tensor, "row d_model"],
    targets: Int[Tensor, "row target"],
    top: int,
    translate: Translator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, ids and ranks of the top tokens and the targets: [row, top + target] each."""
    parts = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        part = part if translate is None else _translated(part, translate)
        logits = output_logits(model.bridge, part).float()
        ids = targets[start : start + ROWS_AT_ONCE].to(logits.device)
        both = torch.cat([logits.topk(top).indices, ids], dim=1)
        there = logits.gather(1, both)
        ranks = torch.stack([(logits > one[:, None]).sum(1) for one in there.T], dim=1)
        parts.append((logits.log_softmax(-1).gather(1, both).cpu(), both.cpu(), ranks.cpu()))
    values, tokens, ranks = (torch.cat(each) for each in zip(*parts, strict=True))
    return values, tokens, ranks
