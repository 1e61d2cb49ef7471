"""The reference: a model as transformers loads it, run with torch hooks written here. Nothing of gatelens is in it.

It shares its weights with the wrapped model, so that a large model is not held twice.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

CUTTING = "cutting"  # the attention function below, as transformers calls it
WAYS = ("eager", "sdpa")  # two computations of transformers that should give the same numbers
# given to generate, so that nothing of a checkpoint's generation_config changes what is greedy
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}


class Unavailable(Exception):
    """What the plain model does not offer, such as hidden states; a check on it is not applicable."""


class Cut(NamedTuple):
    """Attention entries that a layer leaves out: before the softmax (``mask``) or after it (``zero``)."""

    entries: Bool[Tensor, "batch 1 query key"]
    how: str


class Edit(NamedTuple):
    """A torch hook on one decoder layer: ``place`` is resid_pre, resid_post, v or z; ``new`` gives the new tensor.

    v and z are [batch, pos, head * d_head].
    """

    layer: int
    place: str
    new: Callable[[Tensor], Tensor]


def twin(hf: Any) -> Any:
    """A second model with modules of its own and the same tensors; of a model before it is wrapped."""
    return copy.deepcopy(hf, {id(tensor): tensor for tensor in [*hf.parameters(), *hf.buffers()]})


def rebuilt(kind: Any, config: Any, weights: Mapping[str, Tensor]) -> Any:
    """A model of this class around these tensors, buffers that are not weights recomputed."""
    config = copy.deepcopy(config)
    hf = kind.from_pretrained(None, config=config, state_dict=dict(weights), attn_implementation="eager")
    for name, parameter in hf.named_parameters():
        if name in weights and parameter.data_ptr() != weights[name].data_ptr():
            parameter.data = weights[name]
    return hf.to(next(iter(weights.values())).device).eval().requires_grad_(False)


class Plain:
    """A model of transformers, and what the checks ask of it."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf.eval()
        self.layers = _decoder_layers(hf)

    # --- passes

    def logits(
        self,
        tensors: Mapping[str, Tensor],
        way: str = "eager",
        edits: Sequence[Edit] = (),
        cuts: Mapping[int, Cut] | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """One pass; ``cuts`` by layer."""
        return self._run(tensors, way, edits, cuts).logits

    def stream(self, tensors: Mapping[str, Tensor], way: str = "eager") -> list[Tensor]:
        """The residual stream entering each layer, and that leaving the last, kept by torch hooks."""
        return self._stream(tensors, way)[0]

    def named_hidden_states(self, tensors: Mapping[str, Tensor]) -> int:
        """How many entries of ``output_hidden_states`` are the stream entering a layer, to the last bit.

        Fewer than there are layers where the picture is added between layers.
        """
        stream, states = self._stream(tensors, "eager", output_hidden_states=True)
        pairs = zip(stream[:-1], states or (), strict=False)
        return sum(torch.equal(mine, theirs.to(mine.device)) for mine, theirs in pairs)

    def _stream(self, tensors: Mapping[str, Tensor], way: str, **asked: Any) -> tuple[list[Tensor], Any]:
        kept: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            kept.append(x)
            return x

        places = [Edit(i, "resid_pre", keep) for i in range(len(self.layers))]
        places.append(Edit(len(self.layers) - 1, "resid_post", keep))
        out = self._run(tensors, way, places, **asked)
        return kept, getattr(out, "hidden_states", None)

    def patterns(
        self, tensors: Mapping[str, Tensor], way: str = "eager"
    ) -> list[Float[Tensor, "batch head query key"]]:
        """The attention weights of each layer as transformers gives them.

        SDPA gives none: with ``sdpa`` they are what the eager function makes of that pass's queries and keys.
        """
        if way == "sdpa":
            kept: list[Tensor] = []
            self._run(tensors, way, cuts={}, patterns=kept)
            return kept
        patterns = self._run(tensors, way, output_attentions=True).attentions
        if patterns is None or len(patterns) != len(self.layers) or any(p is None for p in patterns):
            raise Unavailable("transformers gives no attention weights of this model")
        return list(patterns)

    def decoder_input(
        self, tensors: Mapping[str, Tensor], silent_towers: bool = False
    ) -> Float[Tensor, "batch pos d_model"]:
        """What enters the first layer; with ``silent_towers`` attention outside the decoder adds nothing.

        A tower whose attention is silent lets each patch see its own pixels only.
        """
        with self._towers_silent() if silent_towers else ExitStack():
            return self._stream(tensors, "sdpa")[0][0]

    def generate(
        self, tensors: Mapping[str, Tensor], n: int
    ) -> tuple[Int[Tensor, "batch new"], list[Float[Tensor, "batch d_vocab"]]]:
        """Greedy tokens by transformers' own loop and cache, and the logits of each step; positions are its own."""
        given = {name: value for name, value in tensors.items() if name != "position_ids"}
        with torch.no_grad(), self._attending("sdpa"):
            made = self.hf.generate(**given, **GREEDY, max_new_tokens=n, min_new_tokens=n)
        prompt = tensors["input_ids"].shape[1]
        return made.sequences[:, prompt:], list(made.logits)

    # --- how

    def _run(
        self,
        tensors: Mapping[str, Tensor],
        way: str,
        edits: Sequence[Edit] = (),
        cuts: Mapping[int, Cut] | None = None,
        patterns: list[Tensor] | None = None,
        **asked: Any,
    ) -> Any:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._attending(way))
            if cuts is not None:
                stack.enter_context(self._cutting(cuts, way, patterns))
            for edit in edits:
                handle = _place(self.layers[edit.layer], edit)
                stack.callback(handle.remove)
            return self.hf(**tensors, use_cache=False, **asked)

    @contextmanager
    def _attending(self, way: str) -> Iterator[None]:
        """Every module of the model uses this attention function of transformers."""
        configs = {id(c): c for c in (getattr(m, "config", None) for m in self.hf.modules()) if c is not None}
        text = self.hf.config.get_text_config()
        with _implementation(list(configs.values()), way):
            if not getattr(text, "attn_logit_softcapping", None):  # which SDPA cannot compute
                yield
                return
            with _implementation([text, *(layer.self_attn.config for layer in self.layers)], "eager"):
                yield

    @contextmanager
    def _cutting(self, cuts: Mapping[int, Cut], way: str, patterns: list[Tensor] | None) -> Iterator[None]:
        """The decoder's layers leave entries out, and put their weights into ``patterns``."""
        inner = [layer.self_attn for layer in self.layers]
        configs = [self.hf.config.get_text_config(), *(m.config for m in inner)]
        for i, module in enumerate(inner):
            module.__dict__["_cut"] = (cuts.get(i), way, patterns)
        try:
            with _implementation(configs, CUTTING):
                yield
        finally:
            for module in inner:
                del module.__dict__["_cut"]

    @contextmanager
    def _towers_silent(self) -> Iterator[None]:
        inside = {id(module) for layer in self.layers for module in layer.modules()}

        def silent(module: Any, args: Any, out: Any) -> Any:
            zero = torch.zeros_like(_first(out))
            return (zero, *out[1:]) if isinstance(out, tuple) else zero

        with ExitStack() as stack:
            for module in self.hf.modules():
                if type(module).__name__.endswith("Attention") and id(module) not in inside:
                    stack.callback(module.register_forward_hook(silent).remove)
            yield


@contextmanager
def _implementation(configs: Sequence[Any], name: str) -> Iterator[None]:
    before = [(config, config._attn_implementation) for config in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, old in reversed(before):
            config._attn_implementation = old


def _decoder_layers(hf: Any) -> list[Any]:
    decoder, wanted = hf.get_decoder(), hf.config.get_text_config().num_hidden_layers
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != wanted:
        raise Unavailable(f"the decoder layers of {type(hf).__name__} stand where transformers does not say")
    return list(layers)


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _place(layer: Any, edit: Edit) -> Any:
    """The hook of an edit. Raises Unavailable where the layer has no such part."""
    if edit.place == "resid_pre":
        return _before(layer, edit.new)
    if edit.place == "resid_post":

        def after(module: Any, args: Any, out: Any) -> Any:
            return (edit.new(out[0]), *out[1:]) if isinstance(out, tuple) else edit.new(out)

        return layer.register_forward_hook(after)
    attention = getattr(layer, "self_attn", None)
    name = {"v": "v_proj", "z": "o_proj"}[edit.place]
    part = getattr(attention, name, None)
    if part is None:
        raise Unavailable(f"the attention of {type(layer).__name__} has no {name}")
    if edit.place == "v":
        return part.register_forward_hook(lambda module, args, out: edit.new(out))
    return _before(part, edit.new)


def _before(module: Any, new: Callable[[Tensor], Tensor]) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (new(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **rest: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' own attention function, with entries of its 4-D mask or of its weights left out.

    Each knockout is computed in two ways, one for ``eager`` and one for ``sdpa``, which differ by rounding alone.
    """
    cut, way, patterns = module.__dict__["_cut"]
    eager = sys.modules[type(module).__module__].eager_attention_forward
    if cut is not None and cut.how == "mask":
        mask = mask.expand(len(query), -1, -1, -1).masked_fill(cut.entries, torch.finfo(mask.dtype).min)
    if patterns is not None:
        patterns.append(eager(module, query, key, value, mask, **rest)[1])
    fused = way == "sdpa" and rest.get("softcap") is None
    zeroed = cut is not None and cut.how == "zero"
    if fused and not zeroed:
        return sdpa_attention_forward(module, query, key, value, mask, **rest)
    out, pattern = eager(module, query, key, value, mask, **rest)
    if not zeroed:
        return out, pattern
    heads = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    if not fused:
        return (pattern.masked_fill(cut.entries, 0) @ heads).transpose(1, 2).contiguous(), pattern
    whole, _ = sdpa_attention_forward(module, query, key, value, mask, **rest)
    return whole - (pattern.masked_fill(~cut.entries, 0) @ heads).transpose(1, 2), pattern


AttentionInterface.register(CUTTING, _attention)
AttentionMaskInterface.register(CUTTING, eager_mask)
