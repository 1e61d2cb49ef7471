"""The base of all interventions: a frozen description that becomes plain hook functions.

An intervention names positions (selectors), layers, perhaps heads, and a site. It holds no model. Given a
:class:`~gatelens.tokens.TokenMap` it becomes ``(hook name, function)`` pairs in TransformerLens' sense.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.arguments import Indices
from gatelens.interventions.hooks import CompiledHooks, Edit, HookPair, Span
from gatelens.tokens import Role, SelectorLike, TokenMap


def resolve_indices(value: Indices, n: int | None, word: str, owner: object) -> tuple[int, ...]:
    """The indices meant, 0 ≤ i < n; negative ones count from the end.

    Raises:
        InterventionError: out of range, nothing left, or ``n`` is needed and unknown.
    """
    if n is None:
        if isinstance(value, tuple) and min(value) >= 0:
            return value
        raise InterventionError(
            f"{owner!r}: {word}={value!r} needs the number of {word}; pass the model's cfg, .hooks(tokens, "
            "model.cfg)"
        )
    if value is None:
        return tuple(range(n))
    if isinstance(value, slice):
        chosen = tuple(range(n))[value]
        if not chosen:
            raise InterventionError(f"{owner!r}: {word}={value!r} is empty in a model of {n} {word}")
        return tuple(sorted(chosen))
    for i in value:
        if not -n <= i < n:
            raise InterventionError(
                f"{owner!r}: {word[:-1]} {i} does not exist, the model has {n} {word} (0 to {n - 1})"
            )
    return tuple(sorted({i % n for i in value}))


def config_number(cfg: Any, name: str) -> int | None:
    """An integer of the TransformerLens config; None when there is no config or it does not say."""
    value = getattr(cfg, name, None)
    return None if value is None else int(value)


def check_tokens(tokens: object) -> None:
    """Raise :class:`InterventionError` for what is not a token map."""
    if not isinstance(tokens, TokenMap):
        raise InterventionError(
            f"tokens is a {type(tokens).__name__}: give the TokenMap of the inputs, inputs.tokens"
        )


def select(tokens: TokenMap, selector: SelectorLike, owner: object) -> Bool[Tensor, "batch pos"]:
    """The positions a selector means in this token map, padding never among them (on the CPU).

    A boolean tensor made for the prompt also fits the map with generated positions: those are False.
    """
    if isinstance(selector, Tensor) and selector.dtype == torch.bool:
        shape, fitting = tuple(selector.shape), (tokens.prompt_length, tokens.n_pos)
        if len(shape) != 2 or shape[0] != tokens.batch_size or shape[1] not in fitting:
            raise InterventionError(
                f"{owner!r}: a boolean selector of shape {shape} does not fit a prompt of shape "
                f"({tokens.batch_size}, {tokens.n_pos})"
            )
        mask = torch.zeros(tokens.batch_size, tokens.n_pos, dtype=torch.bool)
        mask[:, : shape[1]] = selector.cpu()
    else:
        mask = tokens.mask(selector, getattr(owner, "masks", None)).cpu()
    return mask & (tokens.roles.cpu() != Role.PAD)


def check_selected(
    tokens: TokenMap, mask: Bool[Tensor, "batch pos"], word: str, selector: SelectorLike, owner: object
) -> None:
    """Raise :class:`InterventionError` where a selector selects nothing; ``word`` is its argument's name."""
    if mask.any():
        return
    message = f"{owner!r}: {word}={selector!r} selects no position in any example"
    has = set(tokens.roles.unique().tolist())
    if str(selector).strip() == "eoi" and Role.IMAGE in has and Role.EOI not in has:
        message += "; this model has no end-of-image token: 'gate' is the first position after the picture"
    raise InterventionError(message)


def prompt_only(tokens: TokenMap, mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The mask without generated positions."""
    return mask & (tokens.roles.cpu() != Role.GENERATED)


def first_position(mask: Bool[Tensor, "batch pos"]) -> int:
    """The first column selected in any example; the number of columns when none is."""
    columns = mask.any(dim=0).nonzero()
    return int(columns[0]) if len(columns) else int(mask.shape[1])


def describe(value: object) -> str:
    """A short form of a field for ``repr``: tensors by dtype and shape, tuples of layers as ranges."""
    if isinstance(value, Tensor):
        kind = "Bool" if value.dtype == torch.bool else "Float" if value.is_floating_point() else "Int"
        return f"{kind}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple) and len(value) > 2 and value == tuple(range(value[0], value[-1] + 1)):
        return f"range({value[0]}, {value[-1] + 1})"
    if isinstance(value, tuple | str | int | float | slice | list | range) or value is None:
        return repr(value)
    if inspect.isroutine(value):
        return value.__name__
    return f"<{type(value).__name__}>" if type(value).__repr__ is object.__repr__ else _clip(repr(value))


def _clip(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


@dataclass(frozen=True)
class Reach:
    """Where an intervention begins: cells before ``position``, and cells below ``layer``, stay as they are.

    Example:
        >>> cut = gl.knockout("last", "gate", layers=[3])
        >>> cut.reach(inputs.tokens, model.cfg), inputs.tokens.positions("last")
        (Reach(position=69, layer=3), [69])
    """

    position: int
    layer: int


@dataclass(frozen=True, eq=False, repr=False)
class Intervention(ABC):
    """Base of all interventions. Subclass it and give :meth:`edits` to add a kind of your own.

    Example:
        >>> class Silence(gl.interventions.Intervention):
        ...     def edits(self, tokens, cfg, span):
        ...         def zero(tensor, hook):
        ...             return torch.zeros_like(tensor)
        ...         return [gl.interventions.Edit(f"blocks.{n}.hook_mlp_out", zero) for n in self.layer_numbers(cfg)]
        >>> same = gl.ablate("~pad", site="mlp_out", layers=[2])
        >>> (model.run(inputs, Silence(layers=[2])) - model.run(inputs, same)).abs().max() < 1e-4
        tensor(True)
    """

    layers: Indices = field(default=None, kw_only=True)
    masks: Mapping[str, Any] | None = field(default=None, kw_only=True, repr=False)  # of its selectors

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """``reach`` is not inherited: a subclass may read more than its parent, and has to say so itself."""
        super().__init_subclass__(**kwargs)
        if "reach" not in vars(cls):
            cls.reach = Intervention.reach  # type: ignore[method-assign]

    @abstractmethod
    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> Sequence[Edit]:
        """The hook functions for these tokens; they read the absolute positions from ``span`` when called."""

    def reach(self, tokens: TokenMap, cfg: Any) -> Reach | None:
        """The first position and the first layer it can change; None where a class does not define this.

        What is known to stay as it is need not be run again; with None the whole model is.
        """
        return None

    @property
    def reads_others(self) -> bool:
        """Whether what it writes into an example depends on the other examples of the batch."""
        return False

    def layer_numbers(self, cfg: Any) -> tuple[int, ...]:
        """The blocks it acts in. Raises InterventionError for one the model lacks."""
        return resolve_indices(self.layers, config_number(cfg, "n_layers"), "layers", self)

    def hooks(self, tokens: TokenMap, cfg: Any = None) -> list[HookPair]:
        """Plain ``(hook name, function)`` pairs for one whole forward pass over ``tokens``.

        They go as they are into TransformerLens' ``run_with_hooks(fwd_hooks=...)``. For several
        interventions, decoding, or a check that every hook fired, let the engine run them (``model.run``,
        ``model.generate``).

        Args:
            tokens: the token map of the inputs.
            cfg: the model's config; needed for ``layers=None``, slices and negative numbers, and it lets
                out-of-range layers and heads be found before the run.

        Raises:
            InterventionError: it selects nothing, or cannot act as written.
        """
        check_tokens(tokens)
        span = Span(0, tokens.n_pos)
        return list(CompiledHooks(self.edits(tokens, cfg, span), span).pairs)

    def __repr__(self) -> str:
        parts = []
        where = ("layers", "heads")
        for f in sorted(fields(self), key=lambda f: f.name in where):  # who and what first, then where
            value = getattr(self, f.name)
            if f.repr and (f.name in ("layers", "at", "queries", "keys", "site", "how") or value is not None):
                parts.append(f"{f.name}={describe(value)}")
        verb = getattr(type(self), "verb", type(self).__name__.lower())
        return f"{verb}({', '.join(parts)})"
