"""HookedVLM: a vision-language model whose every activation can be read and edited."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge.sources import build_bridge_from_module

from gatelens import engine
from gatelens.bridge import towers
from gatelens.bridge.attention import attention_windows, install_attention, position_limit
from gatelens.bridge.linear_layers import install_linear_layers
from gatelens.bridge.norms import install_norms
from gatelens.bridge.parts import Parts
from gatelens.bridge.weights import named_tensors, quantisation, refuse_state_dict
from gatelens.engine.footprint import as_bytes
from gatelens.errors import InputError, ModelError
from gatelens.families import Family, Layout, adapted
from gatelens.hooked_model import HookPoints
from gatelens.inputs import Images, VLMInputs
from gatelens.model import checkpoints, input_checks, input_preparation, loading
from gatelens.model.hooked_bridge import HookedBridge


class HookedVLM(HookedBridge):
    """A transformers VLM wrapped by TransformerLens, with the map of its tokens.

    It is a ``TransformerBridge``: what works on one works on it, with pictures (*Coming from TransformerLens*).
    Parameters are frozen; gradients with respect to activations still flow.

    Attributes:
        hf: the transformers model, whose modules now carry the hooks.
        cfg: TransformerLens' config.
        family, layout: how this model lays out its tokens.
        hook_points: by TransformerLens' names.
        lock: held by every run, so that threads take turns; ``with model.lock:`` keeps it for several calls.
        weight_names: those of the state dict before wrapping.
        quantisation: how the weights are quantised; None where they are not.
        loaded_from: name and keywords of ``from_pretrained``, by which a worker loads it too; None for any other model.

    Example:
        >>> model = gl.HookedVLM.from_pretrained("organism:gated")
        >>> model(model.prepare(scene.image, scene.prompt)).shape  # [batch, pos, d_vocab]
        torch.Size([1, 70, 1121])
        >>> model.generate(inputs, max_new_tokens=3)
        'sunflower'
    """

    loaded_from: tuple[str, dict[str, Any]] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ModelError(
            "HookedVLM is made by from_pretrained(name), from_module(hf_model) or from_parts(...)"
        )

    @classmethod
    def _around(
        cls, hf: Any, bridge: Any, family: Family, layout: Layout, processor: Any, names: tuple[str, ...]
    ) -> HookedVLM:
        """The bridge that TransformerLens built, as a model that knows its family."""
        points = HookPoints(bridge, hf.config)
        bridge.__class__ = cls
        model: HookedVLM = bridge
        # not by setattr, which would register the wrapped model as a module of the bridge
        model.__dict__.update(hf=hf, processor=processor, hook_points=points, lock=points.lock)
        model.__dict__["hook_embed"] = points.by_name["hook_embed"]
        model._gradient_handles = []
        model.weight_names, model.family, model.layout = names, family, layout
        model.tokenizer, model.loaded_from = getattr(processor, "tokenizer", None), None
        model.cfg.attention_windows = attention_windows(hf.config.get_text_config(), int(model.cfg.n_layers))
        model.cfg.position_limit = position_limit(hf.config.get_text_config())
        if layout.two_way:  # what TransformerLens' functions ask that rely on causality
            model.cfg.attention_dir = "bidirectional"
        refuse_state_dict(hf)
        model.quantisation, model.memory_limit = quantisation(hf), None
        install_norms(model)
        install_linear_layers(model)
        model.attention = "fused"
        return model

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
        """Load a model by its name. The checkpoint must hold the model's weights, all of them and no others.

        Args:
            name: ``organism:NAME``, a folder or a hub id.
            device: moves the whole model there.
            dtype: of the weights; None keeps the checkpoint's.
            device_map: spreads the model over devices; needs accelerate.
            attention: see the property.
            kwargs: go to transformers.

        Raises:
            ModelError: the model is not found or not supported, its weights are not complete and finite (see
                :func:`gatelens.model.loading.load`), or ``device`` cannot be used.
        """
        model = cls.from_module(*loading.load(name, dtype, device, device_map, **kwargs))
        model.attention = attention
        given = {"device": device, "dtype": dtype, "device_map": device_map, **kwargs}
        model.loaded_from = loading.anywhere(name), given
        return model

    @classmethod
    def from_module(cls, hf_model: Any, processor: Any = None, layout: Layout | None = None) -> HookedVLM:
        """Wrap a model the caller holds. It is changed in place: hooks go in, parameters are frozen.

        Args:
            layout: replaces the family's; needed where TransformerLens has an adapter but gatelens no family.

        Raises:
            ModelError: the class is not supported, the model is already wrapped, or the processor is not one.
        """
        loading.check_wrappable(hf_model, processor)
        architecture, family = loading.family_for(hf_model, layout)
        layout = layout if layout is not None else family.layout(hf_model.config, processor)
        loading.check_layout(layout)
        hf_model.eval().requires_grad_(False)
        names = tuple(name for name, _ in named_tensors(hf_model))
        with adapted(architecture, family):
            bridge = build_bridge_from_module(hf_model, architecture, hf_config=hf_model.config)
        towers.install_towers(bridge)
        if family.adjust is not None:
            family.adjust(bridge)
        return cls._around(hf_model, bridge, family, layout, processor, names)

    @classmethod
    def from_parts(
        cls, language_model: Any, embed_images: Callable[..., Tensor], layout: Layout, processor: Any = None
    ) -> HookedVLM:
        """Wrap a decoder that transformers knows together with a picture encoder it does not know.

        The general route for models with code of their own.

        Args:
            language_model: a causal language model with its head (Llama, Qwen, Mistral …), or of a class derived
                from one.
            embed_images: from pixel values to Float[features, d_model] or [pictures, features, d_model], one row
                for each placeholder in order; the tensors that ``layout.evidence`` names go to it by keyword. A
                torch module is frozen with the rest.
            layout: where the features are; a model whose own code marks a picture by one id outside the
                vocabulary (-200) gets a spare id, written once for each feature.
            processor: anything that takes images= and text=, as transformers' do; without it use ``inputs``.

        Raises:
            ModelError: TransformerLens has no adapter for the decoder, it is wrapped already, or the placeholder
                is outside its vocabulary.

        Example:
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
        architecture = loading.decoder_of(language_model)
        loading.check_wrappable(language_model, processor)
        loading.check_layout(layout)
        parts = Parts(language_model, embed_images, layout.placeholder_id, layout.evidence)
        parts.eval().requires_grad_(False)
        names = tuple(name for name, _ in named_tensors(parts))
        bridge = build_bridge_from_module(language_model, architecture, hf_config=language_model.config)
        family = Family(f"parts:{architecture}", (architecture,), lambda config, processor: layout)
        return cls._around(parts, bridge, family, layout, processor, names)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        overwrite: bool = False,
        max_shard_size: int | str = "50GB",
    ) -> Path:
        """Write a plain transformers checkpoint, config, weights and processor; returns the folder.

        transformers' ``from_pretrained`` and gatelens' load it. It is written next to ``folder`` and renamed when
        whole. An organism's picture decoder goes along.

        Args:
            overwrite: replace the folder of an older checkpoint, with all that is in it.
            max_shard_size: larger weights are split into files of this size.

        Raises:
            OutputError: nothing can be written there, or something else is there.
            ModelError: a model of ``from_parts``, a quantised one, or weights that are not in memory.
        """
        return checkpoints.save(self, folder, overwrite, max_shard_size)

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
    def memory_limit(self) -> int | None:
        """Bytes that simultaneous runs may take, weights included: as many run at once as fit. Takes "80GB" too.

        None, the default: what is free on the model's GPUs, and no limit elsewhere.
        """
        return self._memory_limit

    @memory_limit.setter
    def memory_limit(self, size: int | str | None) -> None:
        self._memory_limit = None if size is None else as_bytes(size, "memory_limit")

    @property
    def attention(self) -> str:
        """How layers with no hook inside their attention compute it: "fused" (default) or "stepwise".

        "fused": transformers' own kernel, several times faster on long prompts and equal to rounding.
        "stepwise": the same computation with and without hooks, so runs can be compared to the last bit.
        """
        return self._attention

    @attention.setter
    def attention(self, way: str) -> None:
        with self.lock:
            install_attention(self, self.hf, way)
            towers.set_tower_mode(self, way)
            self._attention = way

    def __repr__(self) -> str:
        c = self.cfg
        return f"HookedVLM({self.family.name}, {c.n_layers} layers, {c.n_heads} heads, d_model {c.d_model})"

    # --- inputs and words

    def prepare(self, images: Images = None, text: str | Sequence[str] = "", chat: bool = False) -> VLMInputs:
        """Images and prompts as a left-padded batch; each placeholder in a prompt takes one image, in order.

        Args:
            images: one (PIL image, path or array), a list, or a list of lists, one per prompt.
            text: ``<image>`` in it means a picture in every family; the family's own markers may be written out.
            chat: make each prompt one user turn by the tokenizer's chat template, else the family's.

        Raises:
            InputError: images and text do not match or cannot be read.
            ModelError: the model has no processor.
        """
        return input_preparation.prepare(self, images, text, chat)

    def inputs(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        pixel_values: Tensor | None = None,
        images: Sequence[Sequence[Any]] | None = None,
        **rest: Any,
    ) -> VLMInputs:
        """A batch from tensors, its TokenMap read from the ids.

        Args:
            attention_mask: without it leading padding ids are masked.
            images: the PIL originals, one list a prompt; without them pixel boxes are in processed pixels.
            rest: what else this family's forward takes (``image_grid_thw``, ``image_sizes`` …).

        Raises:
            InputError: ids, padding and pictures do not fit together.
        """
        return input_preparation.from_tensors(self, input_ids, attention_mask, pixel_values, images, rest)

    def as_turn(self, text: str) -> str:
        """A prompt as one user turn, ``<image>`` still in it: by the tokenizer's chat template, else the family's.

        Raises:
            ModelError: the template leaves the prompt out.
        """
        return input_preparation.as_turn(self, text)

    def decode(self, ids: Int[Tensor, "batch pos"] | Sequence[Any]) -> list[str]:
        """Texts of token ids, special tokens left out: one per row (a flat list is one row)."""
        rows = input_checks.rows_of_ids(self, ids)
        return self._own_tokenizer().batch_decode(rows, skip_special_tokens=True)

    def to_tokens(
        self,
        text: str | Sequence[str] | VLMInputs,
        prepend_bos: bool | None = True,
        padding_side: str = "left",
        **unused: Any,
    ) -> Any:
        """Token ids of text alone, Int[batch, pos]; ``prepend_bos=False`` leaves special tokens out.

        A prepared batch is returned as it is, with its pictures.
        """
        if isinstance(text, VLMInputs):
            return text
        texts = input_checks.as_texts(text)
        with self.lock:
            encoded = self._own_tokenizer()(
                texts,
                padding=len(texts) > 1,
                padding_side=padding_side or "left",
                add_special_tokens=prepend_bos is not False,
                return_tensors="pt",
            )
        return encoded["input_ids"].to(self.device)

    def to_single_token(self, word: str) -> int:
        """Id of a word that is one token. Raises InputError with its pieces otherwise."""
        tokenizer, word = self._own_tokenizer(), input_checks.as_text(word, "word")
        with self.lock:
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise InputError(f"'{word}' is not one token but {tokenizer.convert_ids_to_tokens(ids)}")
        return int(ids[0])

    def _own_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ModelError("this model has no tokenizer: pass processor= to from_module")
        return self.tokenizer

    # --- runs

    def run(self, inputs: Any, interventions: Any = ()) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits under interventions; see :mod:`gatelens.engine`.

        Chameleon's logits of image tokens are overwritten with the dtype's lowest number (−3.4e38 in float32).
        """
        return engine.run(self, self.batch(inputs), interventions)

    def generate(
        self,
        inputs: Any,
        interventions: Any = (),
        max_new_tokens: int = 20,
        stop_at_eos: bool = True,
        return_type: str = "str",
        do_sample: bool | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        num_beams: int = 1,
    ) -> Any:
        """Decoding with the interventions holding at every step: greedy, or sampled.

        Args:
            inputs: prompts; the ``inputs`` of an earlier Generation continue from there.
            do_sample: None samples where ``temperature``, ``top_k``, ``top_p`` or ``seed`` is given.
            temperature, top_k, top_p: as transformers'.
            seed: of the sampling; an example's draw does not depend on the others of its batch.
            num_beams: 1; beams are refused, as an intervention holds in each of them and not over them.

        Returns:
            A list of texts, or one text for one string; the Generation with ``return_type="ids"`` or ``"map"``.
        """
        if return_type not in ("str", "ids", "map"):
            raise InputError(f"return_type '{return_type}': write 'str', 'ids' or 'map'")
        if num_beams != 1:
            raise InputError(
                "beam search under interventions is not supported: use do_sample or greedy decoding; without "
                "interventions model.hf.generate(**inputs.tensors, num_beams=...) is transformers' own"
            )
        given = (temperature, top_k, top_p, seed) != (1.0, None, None, 0)
        if given and do_sample is False:
            raise InputError(
                "do_sample=False takes the most likely token: leave temperature, top_k, top_p, seed out"
            )
        sampling = engine.Sampling(temperature, top_k, top_p, seed) if given or do_sample else None
        inputs = self.batch(inputs)
        generation = engine.generate(
            self,
            inputs,
            interventions,
            max_new_tokens=max_new_tokens,
            stop_at_eos=stop_at_eos,
            sampling=sampling,
        )
        if return_type != "str":
            return generation
        return generation.texts[0] if inputs.single else list(generation.texts)
