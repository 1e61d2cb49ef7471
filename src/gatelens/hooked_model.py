"""Forward passes with TransformerLens hooks that live as long as the call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformers import Cache, DynamicCache

from gatelens.bridge import towers
from gatelens.bridge.weights import Quantisation, unfetched
from gatelens.errors import InputError, InterventionError, ModelError, did_you_mean, shown
from gatelens.families import Family, Layout
from gatelens.inputs import VLMInputs
from gatelens.tokens import position_ids

HookFn = Callable[..., Any]
HookName = str | Callable[[str], bool]
FwdHooks = Iterable[tuple[HookName, HookFn]]
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
Way = Literal["fwd", "bwd"]


class ModelLock:
    """Lets one thread at a time use a model; that thread may take it again. A copied model has a lock of its own.

    Hooks, knockouts and skipped layers stand in the model's modules while a pass runs, so two threads in it at
    once would see each other's.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[ModelLock], tuple[()]]:
        return ModelLock, ()


def _same_shape(fn: HookFn, name: str) -> HookFn:
    """The hook, which may give an activation of the same shape or nothing: others break the pass, or broadcast."""

    def hook_fn(tensor: Any, hook: Any) -> Any:
        new = fn(tensor, hook=hook)
        if new is None or new is tensor or not isinstance(tensor, Tensor):
            return new
        if not isinstance(new, Tensor) or new.shape != tensor.shape:
            given = tuple(new.shape) if isinstance(new, Tensor) else shown(new)
            raise InterventionError(
                f"the hook on '{name}' gave {given}, expected {tuple(tensor.shape)}: return an edited activation, "
                "or None to leave it"
            )
        return new

    return hook_fn


def hook_pairs(hooks: Any, name: str = "fwd_hooks") -> list[tuple[HookName, HookFn]]:
    """The pairs of a name (or a predicate on names) and a function that ``fwd_hooks`` or ``bwd_hooks`` hold.

    Raises:
        InterventionError: they hold something else.
    """
    if isinstance(hooks, Tensor) or not isinstance(hooks, Iterable):
        raise InterventionError(f"{name} is {shown(hooks)}: give a list of pairs (name, function)")
    pairs = []
    for pair in hooks:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InterventionError(
                f"{name} hold {shown(pair)}: give a list of pairs (name, function), even for a single one"
            )
        point, function = pair
        if not isinstance(point, str) and not callable(point):
            raise InterventionError(
                f"{name}: {shown(point)} is neither the name of a hook nor a filter, a function of names"
            )
        if not callable(function):
            raise InterventionError(
                f"{name}: the hook on {shown(point)} is {shown(function)}: give a function of the tensor and hook="
            )
        pairs.append((point, function))
    return pairs


class HookedModel(Protocol):
    """What a pass, an intervention's run and a checkpoint need of a model: :class:`gatelens.model.HookedVLM`."""

    hf: Any
    bridge: Any
    cfg: Any
    family: Family
    layout: Layout
    processor: Any
    tokenizer: Any
    hook_points: HookPoints
    lock: ModelLock
    weight_names: tuple[str, ...]
    quantisation: Quantisation | None

    @property
    def memory_limit(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def forward_step(
        self, tensors: dict[str, Any], fwd_hooks: FwdHooks = (), past: Any = None, use_cache: bool = False
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]: ...

    def run_with_hooks(
        self, inputs: VLMInputs, fwd_hooks: FwdHooks = ()
    ) -> Float[Tensor, "batch pos d_vocab"]: ...

    def run_with_cache(
        self, inputs: VLMInputs, names_filter: NamesFilter = None, fwd_hooks: FwdHooks = ()
    ) -> tuple[Any, Any]: ...

    def batch(self, given: Any, **tensors: Any) -> VLMInputs: ...

    def inputs(self, input_ids: Int[Tensor, "batch pos"], **tensors: Any) -> VLMInputs: ...

    def to_single_token(self, word: str) -> int: ...


def _misnamed(bridge: Any, name: str) -> bool:
    """Whether a name says neurons where TransformerLens gives what an MLP of experts reads or adds."""
    for neurons, other in (("mlp.hook_post", "mlp.hook_out"), ("mlp.hook_pre", "mlp.hook_in")):
        if name.endswith(neurons):
            return bridge.hook_dict[name] is bridge.hook_dict.get(name.removesuffix(neurons) + other)
    return False


class HookPoints:
    """The hook points of a model by TransformerLens' names.

    Attributes:
        lock: held while any of them has hooks.
        by_name: all of them.
        of_towers: those outside the decoder.
        unread: the reason why an edit would change nothing, for points where that is so.
    """

    def __init__(self, bridge: Any, config: Any) -> None:
        self.lock = ModelLock()
        # TransformerLens' own is what the embedding gives; a picture's features come after it
        named = {name: point for name, point in bridge.hook_dict.items() if not _misnamed(bridge, name)}
        self.by_name: dict[str, HookPoint] = named | {"hook_embed": bridge.blocks[0].hook_in}
        self.of_towers: dict[str, HookPoint] = towers.tower_points(bridge)
        self.unread: dict[str, str] = towers.unread_points(bridge, config)
        self._closed_by: Callable[[str], str | None] = bridge._gated_hook_reason

    def __call__(self) -> list[HookPoint]:
        """Every point once: ``model.hook_points()``, as TransformerLens' models give them."""
        return list({id(point): point for point in self.by_name.values()}.values())

    def of_decoder(self) -> list[HookPoint]:
        return [point for name, point in self.by_name.items() if name not in self.of_towers]

    def resolve(self, name: HookName) -> list[tuple[str, HookPoint]]:
        """The points of a name or of a predicate on names, each once, with the name it was asked for by.

        A point with several names that satisfy a predicate has its own. Points that wait for a switch are left out of a
        predicate's.

        Raises:
            InterventionError: no point has this name, or none that fires satisfies the predicate.
        """
        if isinstance(name, str):
            if name not in self.by_name:
                raise InterventionError(f"no hook '{name}' in this model{did_you_mean(name, self.by_name)}")
            return [(name, self.by_name[name])]
        chosen: dict[int, tuple[str, HookPoint]] = {}
        for spelled, point in self.by_name.items():
            better = id(point) not in chosen or spelled == point.name
            if better and name(spelled) and self.switch_of(spelled) is None:
                chosen[id(point)] = (spelled, point)
        if not chosen:
            raise InterventionError(
                "no hook of this model satisfies the filter: see model.hook_dict for their names"
            )
        return list(chosen.values())

    def switch_of(self, name: str) -> str | None:
        """What must be switched on before this point fires; None when it fires as it is."""
        return self._closed_by(self.by_name[name].name or name)

    def names(self, names_filter: NamesFilter) -> list[str]:
        """The names a filter of ``run_with_cache`` asks for. Raises InterventionError where it is none."""
        if isinstance(names_filter, str):
            return [names_filter]
        if names_filter is not None and not callable(names_filter):
            chosen = list(names_filter) if isinstance(names_filter, Iterable) else [None]
            if not all(isinstance(name, str) for name in chosen):
                raise InterventionError(
                    f"names_filter={shown(names_filter)}: give a hook's name, several, or a function of names"
                )
            return chosen
        wanted = [name for name in self.by_name if names_filter is None or names_filter(name)]
        return [name for name in wanted if self.switch_of(name) is None]

    def add(
        self, name: HookName, fn: HookFn, way: Way = "fwd", is_permanent: bool = False, prepend: bool = False
    ) -> list[tuple[HookPoint, Any]]:
        """Put a hook on its points, and say where; inside it ``hook.name`` is the name that was asked for.

        Raises:
            InterventionError: an unknown name, or a point that never fires.
        """
        added = []
        for spelled, point in self.resolve(name):
            if (switch := self.switch_of(spelled)) is not None:
                raise InterventionError(f"hook '{spelled}' never fires: call model.set_{switch}(True) first")
            reason = self.unread.get(spelled) if way == "fwd" else None
            hook_fn = fn if reason is None else towers.read_only(fn, spelled, reason)
            hook_fn = _same_shape(hook_fn, spelled) if way == "fwd" else hook_fn
            handle = point.add_hook(_named(hook_fn, spelled, point), way, is_permanent, prepend=prepend)
            handle.user_hook = fn
            added.append((point, handle))
        return added

    @contextmanager
    def hooked(
        self, fwd_hooks: FwdHooks, bwd_hooks: FwdHooks = (), keep: bool = False, prepend: bool = False
    ) -> Iterator[None]:
        """Hooks that live as long as the block, also when it raises; no other thread uses the model meanwhile.

        With ``keep`` they stay when the block does not raise.

        Raises:
            InterventionError: an unknown name, a point that never fires, or an edit that would change nothing.
        """
        added: list[tuple[HookPoint, Any]] = []
        done = False
        with self.lock:
            try:
                for name, fn in hook_pairs(fwd_hooks):
                    added += self.add(name, fn, "fwd", prepend=prepend)
                for name, fn in hook_pairs(bwd_hooks, "bwd_hooks"):
                    added += self.add(name, fn, "bwd", prepend=prepend)
                yield
                done = True
            finally:
                for point, handle in () if keep and done else added:
                    handle.hook.remove()
                    for handles in (point.fwd_hooks, point.bwd_hooks):
                        handles[:] = [other for other in handles if other is not handle]


class NamedPoint:
    """A hook point as a hook sees it: by the name it was asked for, else the point itself."""

    def __init__(self, name: str, point: HookPoint) -> None:
        self.name, self._point = name, point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._point, name)

    def layer(self) -> int:
        """The layer in the name."""
        return int(self.name.split(".")[1])


def _named(fn: HookFn, name: str, point: HookPoint) -> HookFn:
    if name == point.name:
        return fn
    seen = NamedPoint(name, point)
    return lambda tensor, hook: fn(tensor, hook=seen)


def usable(model: Any, inputs: Any) -> VLMInputs:
    """The prompts of a call, when it was given a model and prompts.

    Raises:
        ModelError: ``model`` is none of gatelens.
        InputError: ``inputs`` is not a batch.
    """
    if not isinstance(getattr(model, "hook_points", None), HookPoints):
        raise ModelError(f"model is {shown(model)}: give a HookedVLM, e.g. HookedVLM.from_pretrained(name)")
    return model.batch(inputs)


def check_room(model: HookedModel, position_ids: Int[Tensor, "*stream batch pos"], new: int = 0) -> None:
    """Refuse prompts that, with the tokens written after them, take more positions than the model has.

    Raises:
        InputError: they do; the message names the limit.
    """
    limit, taken = model.cfg.position_limit, int(position_ids.max()) + 1
    if limit is None or taken + new <= limit:
        return
    if taken > limit:
        raise InputError(
            f"the prompt takes {taken} positions, this model has {limit} (max_position_embeddings): shorten it, or "
            "give fewer or smaller pictures"
        )
    raise InputError(
        f"the prompt takes {taken} positions and {new} new tokens are requested, this model has {limit} "
        f"(max_position_embeddings): ask for {limit - taken} at most, or shorten the prompt"
    )


def forward_step(
    model: HookedModel, tensors: dict[str, Any], past: Any = None, use_cache: bool = False
) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]:
    """One forward pass: (logits, cache or None); see :meth:`gatelens.model.HookedVLM.forward_step`."""
    if not isinstance(tensors, Mapping) or not isinstance(tensors.get("input_ids"), Tensor):
        raise InputError(
            f"tensors is {shown(tensors)}: give transformers' arguments by name, including input_ids"
        )
    if past is not None and not isinstance(past, Cache):
        raise InputError(f"past is a {type(past).__name__}: give a cache that forward_step returned, or None")
    kwargs = {name: value for name, value in tensors.items() if value is not None}
    if "position_ids" not in kwargs and "attention_mask" in kwargs:
        n_new = kwargs["input_ids"].shape[1]
        kwargs["position_ids"] = position_ids(kwargs["attention_mask"])[:, -n_new:]
        if model.family.complete is not None:
            if past is not None and past.get_seq_length():
                raise InputError(
                    "position_ids are missing, and this family counts positions in its own way: "
                    "continue from the prompt's with gatelens.inputs.next_position_ids"
                )
            kwargs |= model.family.complete(model.hf, kwargs)
    n_pos = kwargs["input_ids"].shape[1] + (0 if past is None else past.get_seq_length())
    if n_pos > (model.cfg.position_limit or n_pos):  # padding takes no position
        check_room(model, kwargs.get("position_ids", torch.tensor([[n_pos - 1]])))
    use_cache = use_cache or past is not None
    if use_cache and past is None:
        past = DynamicCache()  # without sliding layers: hooks count rows and keys from the first position
    try:
        out = model.hf(past_key_values=past, use_cache=use_cache, **kwargs)
    except RuntimeError as error:
        reader = unfetched(model.hf, error)
        if reader is None:
            raise
        raise ModelError(
            f"'{reader}' reads weights of its parts without running them, so accelerate does not fetch them: let "
            "device_map keep it in memory"
        ) from error
    return out.logits, out.past_key_values if use_cache else None
