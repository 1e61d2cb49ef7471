"""From a list of interventions to the hook functions of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gatelens.errors import InterventionError, shown
from gatelens.interventions.base import Intervention, check_tokens
from gatelens.interventions.editing import HookPairEdit, check_function
from gatelens.interventions.hooks import CompiledHooks, HookPair, Span
from gatelens.interventions.knockouts import knockout_edits, split_knockouts
from gatelens.tokens import TokenMap


def as_interventions(specs: Any) -> list[Intervention]:
    """A flat list of interventions from one, several, nested lists; None stands for none.

    A pair of a hook name and a function, as TransformerLens takes it, is an intervention too.

    Raises:
        InterventionError: something in it is not an intervention.
    """
    try:
        return _flat(specs)
    except RecursionError:
        raise InterventionError("the interventions are a list that holds itself; give a flat list") from None


def _flat(specs: Any) -> list[Intervention]:
    if specs is None:
        return []
    if isinstance(specs, np.ndarray):
        specs = specs.tolist()
    if isinstance(specs, Intervention):
        return [specs]
    if isinstance(specs, tuple) and len(specs) == 2 and callable(specs[1]) and not isinstance(specs[1], type):
        name, function = specs
        if not isinstance(name, str):
            raise InterventionError(
                f"{shown(name)} is not a hook name; in a pair with a function give the name of one hook point"
            )
        check_function(function, f"the hook of {name!r}", "(tensor, hook)", None, hook=None)
        return [HookPairEdit(name, function)]
    if isinstance(specs, Iterable) and not isinstance(specs, str | bytes | Mapping | Tensor):
        return [one for group in specs for one in _flat(group)]
    raise InterventionError(
        f"{shown(specs)} is not an intervention; make one with gl.knockout, gl.patch, gl.steer, gl.ablate or "
        "gl.edit, or give (hook name, function)"
    )


def compile_hooks(specs: Any, tokens: TokenMap, cfg: Any = None) -> CompiledHooks:
    """Make the hooks of all interventions for these tokens.

    Knockouts of one layer become one hook, so that a row left with nothing is seen over their union and
    their order cannot matter. Other edits at the same hook point act in the order of the list.

    Args:
        specs: an intervention, a list of them (nested lists are flattened), or None.
        tokens: who is where; with generated positions when the run decodes.
        cfg: the TransformerLens config of the model (``n_layers``, ``n_heads``, ``n_key_value_heads``).

    Raises:
        InterventionError: an intervention selects nothing or cannot act as written.
    """
    check_tokens(tokens)
    span = Span(0, tokens.n_pos)
    knockouts, others = split_knockouts(as_interventions(specs))
    edits = knockout_edits(knockouts, tokens, cfg, span)
    for spec in others:
        edits.extend(spec.edits(tokens, cfg, span))
    return CompiledHooks(edits, span)


def hooks(specs: Any, tokens: TokenMap, cfg: Any = None) -> list[HookPair]:
    """Plain ``(hook name, function)`` pairs of several interventions for one whole forward pass over ``tokens``.

    They act as in ``model.run``; the ``.hooks()`` of each, put in one list, may not.

    Args:
        specs: an intervention, a list of them (nested lists are flattened), or None.
        tokens: the roles of the prompts, ``inputs.tokens``.
        cfg: the config of the model, ``model.cfg``: it says how many layers and heads there are.

    Raises:
        InterventionError: an intervention selects nothing or cannot act as written.

    Example:
        >>> fwd_hooks = gl.hooks(gl.knockout("last", "image", layers=[3]), inputs.tokens, model.cfg)
        >>> [name for name, function in fwd_hooks]
        ['blocks.3.attn.hook_attn_scores']
        >>> model.run_with_hooks(inputs, fwd_hooks=fwd_hooks).shape
        torch.Size([1, 70, 1121])
    """
    return list(compile_hooks(specs, tokens, cfg).pairs)
