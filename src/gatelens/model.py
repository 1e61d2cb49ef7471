"""HookedVLM: a vision-language model whose every activation can be read and edited."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import DynamicCache

from . import loading
from .errors import InputError, InterventionError, ModelError
from .families import Family, Layout, adapted, family_of
from .families.common import towers
from .families.common.attention import install as install_attention
from .families.common.attention import windows
from .families.common.norms import install as install_norms
from .families.common.parts import Parts
from .families.common.reading import read as read_layout
from .inputs import PER_PICTURE, Images, VLMInputs, match_images, position_ids
from .kept import DECODER, Kept
from .tokens import SelectorLike
from .words import Words

HookFn = Callable[..., Any]
HookName = str | Callable[[str], bool]
FwdHooks = Iterable[tuple[HookName, HookFn]]
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


class HookedVLM(Words):
    """A transformers VLM wrapped by TransformerLens, with the map of its tokens.

    ``hf``: the transformers model, whose modules now carry the hooks. ``bridge``: TransformerLens' view of
    it. ``cfg``: TransformerLens' config. ``family``, ``layout``: how this model lays out its tokens.
    Parameters are frozen; gradients with respect to activations still flow.
    """

    def __init__(self, hf: Any, bridge: Any, family: Family, layout: Layout, processor: Any = None) -> None:
        self.hf = hf
        self.bridge = bridge
        self.family = family
        self.layout = layout
        self.processor = processor
        self.tokenizer: Any = getattr(processor, "tokenizer", None)
        self.cfg = bridge.cfg
        self.cfg.attention_windows = windows(hf.config.get_text_config(), int(self.cfg.n_layers))
        self._points: dict[str, HookPoint] = bridge.hook_dict
        self._tower_points, self._unread = towers.points(bridge), towers.unread(bridge, hf.config)
        install_norms(bridge)
        self.attention = "fused"

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        attention: str = "fused",
        **kwargs: Any,
    ) -> HookedVLM:
        """Load ``organism:NAME``, a folder or a hub id. ``dtype`` None keeps the checkpoint's.

        ``device`` moves the whole model; ``device_map`` spreads it (needs accelerate). ``attention``: see
        the property. Other keywords go to transformers. Raises ModelError for what is not found or supported.
        """
        if device is not None and device_map is not None:
            raise ModelError("device and device_map were both given: give one")
        hf, processor = loading.load(name, dtype, device_map, **kwargs)
        if device is not None:
            try:
                hf = hf.to(device)
            except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
                reason = str(error).splitlines()[0].rstrip(".")
                raise ModelError(f"device '{device}' cannot be used: {reason}") from error
        model = cls.from_module(hf, processor)
        model.attention = attention
        return model

    @classmethod
    def from_module(cls, hf_model: Any, processor: Any = None, layout: Layout | None = None) -> HookedVLM:
        """Wrap a model the caller holds. It is changed in place: hooks go in, parameters are frozen.

        ``layout`` replaces the family's, or stands for it where TransformerLens has an adapter but gatelens
        no family. Raises ModelError when the class is not supported or the model is already wrapped.
        """
        _check_fresh(hf_model)
        architecture, family = _family(hf_model, layout)
        layout = layout if layout is not None else family.layout(hf_model.config, processor)
        hf_model.eval().requires_grad_(False)
        with adapted(architecture, family):
            bridge = build_bridge_from_module(hf_model, architecture, hf_config=hf_model.config)
        towers.install(bridge)
        if family.adjust is not None:
            family.adjust(bridge)
        return cls(hf_model, bridge, family, layout, processor)

    @classmethod
    def from_parts(
        cls, language_model: Any, embed_images: Callable[..., Tensor], layout: Layout, processor: Any = None
    ) -> HookedVLM:
        """Wrap a decoder that transformers knows together with a picture encoder it does not know.

        The general route for models with code of their own. ``language_model``: a causal language model with
        its head (Llama, Qwen, Mistral …), or of a class derived from one. ``embed_images(pixel_values)``:
        Float[features, d_model], or [pictures, features, d_model], one row for each placeholder in order; the
        tensors ``layout.evidence`` names go to it by keyword. A torch module is frozen with the rest.
        ``layout``: where the features stand; a model whose own code marks a picture by one id outside the
        vocabulary (-200) gets a spare id, written once for each feature. ``processor``: anything that takes
        images= and text=, as transformers' do; without it use ``inputs``. Raises ModelError for a decoder that
        TransformerLens has no adapter for or that is wrapped already, or a placeholder outside its vocabulary.

            >>> import torch, gatelens as gl
            >>> from gatelens.families import FixedGrid, Geometry, Layout
            >>> from transformers import LlamaConfig, LlamaForCausalLM
            >>> decoder = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2,
            ...                                        num_attention_heads=4, intermediate_size=48))
            >>> tower = torch.nn.Conv2d(3, 32, kernel_size=8, stride=8)  # 2x2 features of 16x16 pixels
            >>> layout = Layout(placeholder_id=7, plan=FixedGrid(2, 2, Geometry((16, 16))), eoi_ids=frozenset({8}))
            >>> model = gl.HookedVLM.from_parts(decoder, lambda x: tower(x).flatten(2).transpose(1, 2), layout)
            >>> ids = torch.tensor([[1, 7, 7, 7, 7, 8, 20, 21]])
            >>> inputs = model.inputs(ids, pixel_values=torch.rand(1, 3, 16, 16))
            >>> inputs.tokens.positions("image"), inputs.tokens.positions("gate")
            ([1, 2, 3, 4], [5])
            >>> model.run(inputs, gl.knockout(queries="text - gate", keys="eoi", layers=[0, 1])).shape
            torch.Size([1, 8, 50])
        """
        architecture = _decoder(language_model)
        _check_fresh(language_model)
        parts = Parts(language_model, embed_images, layout.placeholder_id, layout.evidence)
        parts.eval().requires_grad_(False)
        bridge = build_bridge_from_module(language_model, architecture, hf_config=language_model.config)
        family = Family(f"parts:{architecture}", (architecture,), lambda config, processor: layout)
        return cls(parts, bridge, family, layout, processor)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device the embedding computes on."""
        embedding = self.hf.get_input_embeddings()
        # weights that accelerate keeps elsewhere are on "meta" until their module runs
        elsewhere = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
        return embedding.weight.device if elsewhere is None else torch.device(elsewhere)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.hf.dtype

    @property
    def attention(self) -> str:
        """How layers with no hook inside their attention compute it: "fused" (default) or "stepwise".

        "fused": transformers' own kernel, several times faster on long prompts and equal to rounding.
        "stepwise": one computation whether a hook looks or not, so runs can be compared to the last bit.
        """
        return self._attention

    @attention.setter
    def attention(self, way: str) -> None:
        install_attention(self.bridge, self.hf, way)
        towers.follow(self.bridge, way)
        self._attention = way

    def __repr__(self) -> str:
        c = self.cfg
        return f"HookedVLM({self.family.name}, {c.n_layers} layers, {c.n_heads} heads, d_model {c.d_model})"

    def prepare(self, images: Images = None, text: str | Sequence[str] = "", chat: bool = False) -> VLMInputs:
        """Images and prompts as a left-padded batch; each placeholder in a prompt takes one image, in order.

        ``images``: one (PIL image, path or array), a list, or a list of lists, one a prompt. ``<image>`` in a
        prompt stands for a picture in every family; the family's own markers may be written out instead.
        ``chat``: make each prompt one user turn by the tokenizer's chat template, else the family's.
        Raises InputError when they do not match or cannot be read, ModelError without a processor.
        """
        if self.processor is None:
            raise ModelError(
                "this model has no processor: pass processor= to from_module, or use inputs(...)"
            )
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise InputError("text must be a string or a list of strings, at least one")
        written = [self._written(one, chat) for one in texts]
        pictures = match_images(images, written, self.layout.placeholder)
        if len(texts) > 1 and self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = (
                self.tokenizer.eos_token
            )  # padding is told by the mask, any token will do
        process = self.layout.process or self.family.process
        if process is not None:
            tensors = process(self.processor, pictures, written)
        else:
            tensors = dict(
                self.processor(
                    images=[picture for one in pictures for picture in one] or None,
                    text=written,
                    padding=len(texts) > 1,
                    padding_side="left",
                    return_tensors="pt",
                    **self.family.processor_kwargs,
                )
            )
        built = self.inputs(images=pictures, **tensors)
        return dataclasses.replace(built, texts=tuple(texts), single=isinstance(text, str))

    def _written(self, text: str, chat: bool) -> str:
        """A prompt as the processor takes it."""
        if chat and getattr(self.tokenizer, "chat_template", None):
            text = _user_turn(self.tokenizer, text)
        elif chat:
            text = self.family.turn.format(text)
        wanted = self.layout.written or self.layout.placeholder
        if self.layout.placeholder not in text and "<image>" in text:
            text = text.replace("<image>", wanted)
        return text

    def inputs(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        pixel_values: Tensor | None = None,
        images: Sequence[Sequence[Any]] | None = None,
        **rest: Tensor,
    ) -> VLMInputs:
        """A batch from tensors, its TokenMap read off the ids.

        ``images``: the PIL originals, one list a prompt; without them pixel boxes are in processed pixels.
        ``rest``: what else this family's forward takes (``image_grid_thw``, ``image_sizes`` …). Without
        ``attention_mask`` leading padding ids are masked. Raises InputError when ids, padding and pictures
        do not fit together.
        """
        ids = torch.as_tensor(input_ids)
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        if ids.ndim != 2 or ids.is_floating_point() or 0 in ids.shape:
            raise InputError(
                f"input_ids of shape {tuple(ids.shape)}, {ids.dtype}: give whole numbers [batch, pos]"
            )
        n_ids = max(int(self.cfg.d_vocab), self.layout.placeholder_id + 1)
        if int(ids.min()) < 0 or int(ids.max()) >= n_ids:
            low, high = int(ids.min()), int(ids.max())
            raise InputError(f"input_ids hold {low}..{high}: the vocabulary ends at {n_ids - 1}")
        mask = (
            self._leading_pad_mask(ids) if attention_mask is None else torch.as_tensor(attention_mask).long()
        )
        if mask.shape != ids.shape:
            raise InputError(
                f"attention_mask is {tuple(mask.shape)}, input_ids {tuple(ids.shape)}: make them alike"
            )
        sizes = None if images is None else [[picture.size for picture in one] for one in images]
        rest = {name: torch.as_tensor(value) for name, value in rest.items() if value is not None}
        tokens, plans = read_layout(self.layout, ids, mask, sizes, self._strings(ids), rest)
        owned = self._owned_rows(plans, pixel_values, rest)
        tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), **rest}
        if pixel_values is not None:
            tensors["pixel_values"] = torch.as_tensor(pixel_values).to(self.dtype)
        if self.family.complete is not None:
            tensors = {**tensors, **self.family.complete(self.hf, tensors)}
        originals = tuple(tuple(one) for one in images) if images is not None else ((),) * len(ids)
        moved = {name: value.to(self.device) for name, value in tensors.items()}
        return VLMInputs(moved, tokens, originals, ("",) * len(ids), rows=owned)

    def _owned_rows(
        self, plans: list[list[Any]], pixel_values: Tensor | None, rest: dict[str, Tensor]
    ) -> dict[str, tuple[int, ...]]:
        """How many rows of the tensors that go by picture belong to each example. Raises InputError."""
        counts = tuple(len(one) for one in plans)
        if self.layout.pixels == "example":
            if sum(counts) and pixel_values is None:
                raise InputError(
                    f"input_ids have placeholders for {sum(counts)} picture(s): give pixel_values"
                )
            return {}
        wanted = tuple(sum(plan.pixel_rows for plan in one) for one in plans)
        given = 0 if pixel_values is None else int(pixel_values.shape[0])
        if sum(wanted) != given:
            rows = "" if sum(wanted) == sum(counts) else f" of {sum(wanted)} rows"
            raise InputError(
                f"input_ids have placeholders for {sum(counts)} picture(s){rows}, pixel_values hold {given}"
            )
        owned = {"pixel_values": wanted} if pixel_values is not None else {}
        return owned | {name: counts for name in rest if name in PER_PICTURE}

    def _leading_pad_mask(self, ids: Tensor) -> Tensor:
        pad = getattr(self.tokenizer, "pad_token_id", None)
        pad = self.hf.config.get_text_config().pad_token_id if pad is None else pad
        if pad is None:
            return torch.ones_like(ids)
        return (ids != pad).long().cummax(dim=1).values

    def _strings(self, ids: Tensor) -> list[list[str]] | None:
        if self.tokenizer is None:
            return None
        return [self.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]

    @contextmanager
    def hooks(self, fwd_hooks: FwdHooks) -> Iterator[None]:
        """Hooks that live as long as the block, also when it raises. Unknown names: InterventionError."""
        added: list[tuple[HookPoint, Any]] = []
        try:
            for name, fn in fwd_hooks:
                for spelled, point in self._resolve(name):
                    if (switch := self._switch(point, spelled)) is not None:
                        raise InterventionError(
                            f"hook '{spelled}' never fires: call model.bridge.set_{switch}(True) first"
                        )
                    why = self._unread.get(spelled)
                    added.append(
                        (point, point.add_hook(fn if why is None else towers.refusing(fn, spelled, why)))
                    )
            yield
        finally:
            for point, handle in added:
                handle.hook.remove()
                point.fwd_hooks[:] = [kept for kept in point.fwd_hooks if kept is not handle]

    def _resolve(self, name: HookName) -> list[tuple[str, HookPoint]]:
        if isinstance(name, str):
            if name not in self._points:
                near = difflib.get_close_matches(name, self._points, n=1)
                hint = f": did you mean '{near[0]}'?" if near else ""
                raise InterventionError(f"no hook '{name}' in this model{hint}")
            return [(name, self._points[name])]
        found = {id(point): (spelled, point) for spelled, point in self._points.items() if name(spelled)}
        return list(found.values())

    def _switch(self, point: HookPoint, name: str) -> str | None:
        """What must be switched on for a hook point to fire; None when it fires as it is."""
        return self.bridge._gated_hook_reason(point.name or name)

    def forward_step(
        self, tensors: dict[str, Any], fwd_hooks: FwdHooks = (), past: Any = None, use_cache: bool = False
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]:
        """One forward pass, on a prompt or (with ``past``) on the tokens after it: (logits, cache or None).

        ``tensors`` are transformers' forward arguments. With ``past``, ``attention_mask`` covers past and new
        positions, ``position_ids`` the new ones, and ``past`` itself is extended in place: copy it to reuse
        it. Missing ``position_ids`` follow from the mask, where a family's positions do; else InputError.
        """
        kwargs = {name: value for name, value in tensors.items() if value is not None}
        if "position_ids" not in kwargs and "attention_mask" in kwargs:
            n_new = kwargs["input_ids"].shape[1]
            kwargs["position_ids"] = position_ids(kwargs["attention_mask"])[:, -n_new:]
            if self.family.complete is not None:
                if past is not None and past.get_seq_length():
                    raise InputError(
                        "position_ids are missing, and this family counts positions in its own way: "
                        "go on from the prompt's with gatelens.inputs.next_position_ids"
                    )
                kwargs |= self.family.complete(self.hf, kwargs)
        use_cache = use_cache or past is not None
        if use_cache and past is None:
            past = DynamicCache()  # without sliding layers: hooks count rows and keys from the first position
        with self.hooks(fwd_hooks):
            out = self.hf(past_key_values=past, use_cache=use_cache, **kwargs)
        return out.logits, out.past_key_values if use_cache else None

    def __call__(self, inputs: VLMInputs) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits, as transformers gives them."""
        return self.forward_step(inputs.tensors)[0]

    def run_with_hooks(
        self, inputs: VLMInputs, fwd_hooks: FwdHooks = ()
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits with TransformerLens hooks: (name or filter, fn(tensor, hook)), gone after the call.

        Raises InterventionError for unknown names, and where an edit of the vision tower would change nothing.
        """
        with towers.noticing(fwd_hooks, self._tower_points) as hooks:
            return self.forward_step(inputs.tensors, hooks)[0]

    def run_with_cache(
        self,
        inputs: VLMInputs,
        names_filter: NamesFilter = None,
        fwd_hooks: FwdHooks = (),
        device: str | torch.device | None = None,
        positions: SelectorLike | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """(logits, ActivationCache); the cache has ``.tokens``, the TokenMap; it sees ``fwd_hooks``' edits.

        ``names_filter``: a hook name, a list, or a predicate on names; None caches everything. ``positions``:
        a selector; only these rows of the decoder's activations are kept, [batch, kept, ...] (of scores and
        patterns their query rows), as many in every example; :func:`gatelens.patch` finds them again.
        ``device`` and ``dtype`` are what is kept, moved and cast. Raises InterventionError for unknown names,
        InputError when the examples of a batch select different numbers of positions.
        """
        stored: dict[str, Tensor] = {}
        kept = None if positions is None else Kept.of(inputs.tokens, positions)
        named = None if dtype is None else loading.as_dtype(dtype)
        kind = named if isinstance(named, torch.dtype) else None  # "auto" keeps what is computed

        def keep(name: str) -> HookFn:
            def hook_fn(tensor: Any, hook: Any) -> None:
                value = tensor[0] if isinstance(tensor, tuple) else tensor
                if isinstance(value, Tensor):
                    value = value.detach()
                    if kept is not None and name.startswith(DECODER):
                        value = kept.rows(value, name)
                    stored[name] = value.to(device=device, dtype=kind if value.is_floating_point() else None)

            return hook_fn

        wanted = self._names(names_filter)
        logits, _ = self.forward_step(inputs.tensors, [*fwd_hooks, *((name, keep(name)) for name in wanted)])
        cache = ActivationCache(stored, self.bridge, has_batch_dim=True)
        cache.tokens = inputs.tokens
        cache.kept = kept
        return logits, cache

    def _names(self, names_filter: NamesFilter) -> list[str]:
        if isinstance(names_filter, str):
            return [names_filter]
        if names_filter is not None and not callable(names_filter):
            return list(names_filter)
        wanted = [name for name in self._points if names_filter is None or names_filter(name)]
        return [name for name in wanted if self._switch(self._points[name], name) is None]

    def run(self, inputs: VLMInputs, interventions: Any = ()) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits under interventions; see :mod:`gatelens.engine`."""
        from . import engine

        return engine.run(self, inputs, interventions)

    def generate(
        self,
        inputs: VLMInputs,
        interventions: Any = (),
        max_new_tokens: int = 20,
        stop_at_eos: bool = True,
        return_type: str = "str",
    ) -> Any:
        """Greedy decoding with the interventions holding at every step.

        Returns a list of texts (one text when prepared from one string); ``return_type="ids"`` or ``"map"``
        gives the whole Generation.
        """
        from . import engine

        if return_type not in ("str", "ids", "map"):
            raise InputError(f"return_type '{return_type}': write 'str', 'ids' or 'map'")
        out = engine.generate(
            self, inputs, interventions, max_new_tokens=max_new_tokens, stop_at_eos=stop_at_eos
        )
        if return_type != "str":
            return out
        return out.texts[0] if inputs.single else list(out.texts)


def _user_turn(tokenizer: Any, text: str) -> str:
    """A prompt by the chat template. Many image-text templates want typed pieces and lose a plain string."""
    for content in (text, [{"type": "text", "text": text}]):
        turn = [{"role": "user", "content": content}]
        written = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if text.strip() in written:
            return written
    raise ModelError(
        "the tokenizer's chat template leaves the prompt out: write the turn yourself, without chat"
    )


def _check_fresh(hf_model: Any) -> None:
    if any(isinstance(module, GeneralizedComponent) for module in hf_model.modules()):
        raise ModelError(f"this {type(hf_model).__name__} is wrapped already: wrap a fresh one")


def _decoder(language_model: Any) -> str:
    """The class of a decoder, or the first of its base classes, that TransformerLens has an adapter for."""
    ArchitectureAdapterFactory.discover_entry_points()
    for base in type(language_model).__mro__:
        if base.__name__ in SUPPORTED_ARCHITECTURES or base.__name__ in ArchitectureAdapterFactory._adapters:
            return base.__name__
    raise ModelError(
        f"TransformerLens has no adapter for the decoder {type(language_model).__name__}: give a causal language "
        "model with its head, such as LlamaForCausalLM, or register an adapter"
    )


def _family(hf_model: Any, layout: Layout | None) -> tuple[str, Family]:
    """(architecture, family) of a model or the first of its base classes that is known."""
    names = [base.__name__ for base in type(hf_model).__mro__]
    for name in names:
        try:
            return name, family_of(name, getattr(hf_model, "config", None))
        except ModelError:
            continue
    ArchitectureAdapterFactory.discover_entry_points()
    if layout is not None and names[0] in ArchitectureAdapterFactory._adapters:
        return names[0], Family(names[0], (names[0],), lambda config, processor: layout)
    return names[0], family_of(names[0])
