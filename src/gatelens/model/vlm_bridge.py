"""TransformerLens' bridge for a VLM: its names, its words, its weights.

Whatever runs the model is in :mod:`gatelens.model.hooked_bridge`; ``docs/transformer-lens.md`` lists every name with
its proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from gatelens.bridge.folding import fold_final_norm
from gatelens.bridge.weights import check_movable
from gatelens.errors import InputError, ModelError, UnknownNameError, did_you_mean
from gatelens.families import Family, Layout
from gatelens.hooked_model import HookPoints, ModelLock
from gatelens.inputs import VLMInputs
from gatelens.model import input_preparation
from gatelens.model.foreign_inputs import fitting

# what TransformerLens offers and a VLM has no use for, with what to do instead
REFUSED = {
    "boot_transformers": "use HookedVLM.from_pretrained(name) or from_module(hf_model)",
    "boot_native": "use HookedVLM.from_pretrained(name) or from_module(hf_model)",
    "boot_tl_legacy": "use HookedVLM.from_pretrained(name) or from_module(hf_model)",
    "check_model_support": "see gatelens.families.all_families(), or `gatelens models`",
    "list_supported_models": "see gatelens.families.all_families(), or `gatelens models`",
    "process_weights": "it rewrites every layer's weights; enable_compatibility_mode() folds the final norm alone",
    "init_weights": "it is for models that TransformerLens builds itself; create a fresh transformers model",
    "hf_generate": "use generate(inputs, ...); without hooks, model.hf.generate(**inputs.tensors) is transformers' own",
    "generate_stream": "use generate(inputs, ..., return_type='ids'), which gives all tokens and the map of them",
    "diffusion_generate": "it is for masked diffusion models; use generate(inputs)",
    "encoder_output": "it is for encoder-decoder models; the picture's features are at 'vision_projector.hook_out'",
    "predict_next_sentence": "it is for BERT",
    "to_sentence_pair_tokens": "it is for BERT; write one prompt for prepare(images, text)",
    "clear_hook_registry": "the hook points of a wrapped model are fixed; reset_hooks() takes the hooks off them",
    "close": "it ends a connection to an engine elsewhere; this model runs here",
    "compile": "a compiled pass fires no hooks; compile the transformers model and do not wrap it",
}


class VLMBridge(TransformerBridge):
    """A ``TransformerBridge`` around a VLM."""

    hf: Any
    family: Family
    layout: Layout
    hook_points: HookPoints
    lock: ModelLock
    compatibility_mode: bool
    weight_names: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name.startswith("_") or f"no attribute '{name}'" not in str(error):
                raise
            near = did_you_mean(name, dir(type(self)))
            raise UnknownNameError(f"HookedVLM has no attribute '{name}'{near}") from None

    @property
    def bridge(self) -> VLMBridge:
        """The model itself: it is TransformerLens' bridge."""
        return self

    @property
    def hook_dict(self) -> dict[str, Any]:
        """Every hook point by each of its names."""
        return self.hook_points.by_name

    def get_hook_point(self, hook_name: str) -> Any:
        """The point of this name; None where there is none."""
        return self.hook_dict.get(hook_name)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; None without one."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __str__(self) -> str:
        return repr(self)

    # --- inputs

    def batch(self, given: Any, **tensors: Any) -> VLMInputs:
        """What a call was given, as a batch: prepared inputs, text without pictures, or token ids.

        Args:
            tensors: what goes with ids (``attention_mask``, ``pixel_values`` …).

        Raises:
            InputError: it is none of these, of a model with another vocabulary or layout, or ids hold placeholders of
                pictures that are not given.
        """
        if isinstance(given, VLMInputs):
            if tensors:
                raise InputError(
                    f"{', '.join(tensors)}: prepared inputs hold their tensors; give one or the other"
                )
            return fitting(self, given)
        texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        if texts and all(isinstance(text, str) for text in texts) and not tensors:
            return input_preparation.prepare(self, None, given, chat=False)
        if isinstance(given, Tensor) and not given.is_floating_point():
            return input_preparation.from_tensors(
                self,
                given,
                tensors.pop("attention_mask", None),
                tensors.pop("pixel_values", None),
                None,
                tensors,
            )
        raise InputError(
            f"inputs is a {type(given).__name__}: give model.prepare(images, text), or model.inputs(input_ids, "
            "pixel_values=...) of tensors"
        )

    # --- words, as TransformerLens asks for them

    def to_string(self, tokens: Any) -> Any:
        """The text of ids, special tokens and pictures' placeholders in it."""
        return super().to_string(_ids(tokens))

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> Any:
        """Text or ids as a list of single tokens; of a batch of several prompts, a list of lists."""
        ids = _ids(input)
        if isinstance(ids, Tensor) and ids.ndim == 2 and len(ids) > 1:
            return [super(VLMBridge, self).to_str_tokens(row) for row in ids]
        return super().to_str_tokens(ids, prepend_bos, padding_side)

    def get_token_position(
        self,
        single_token: Any,
        input: Any,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """The position of a token in one prompt; see TransformerLens."""
        return super().get_token_position(single_token, _ids(input), mode, prepend_bos, padding_side)

    def input_to_embed(self, input: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, VLMInputs, None, Tensor]:
        """(residual stream entering layer 0, the batch, None, attention mask), pictures in their places."""
        batch = self.batch(input)
        return self.forward(batch, stop_at_layer=0), batch, None, batch.tensors["attention_mask"]

    def prepare_multimodal_inputs(self, text: Any, images: Any = None) -> VLMInputs:
        """``prepare(images, text)``."""
        return input_preparation.prepare(self, images, text, chat=False)

    # --- weights

    def enable_compatibility_mode(self, **options: Any) -> None:
        """Fold the final norm into the unembedding, which is what TransformerLens' direct logit attribution asks for.

        Logits stay what they are, to rounding. Nothing else is changed; a tied unembedding is untied.

        Raises:
            ModelError: an option was given, or the norm cannot be folded.
        """
        if options:
            raise ModelError(f"{', '.join(options)}: enable_compatibility_mode() takes no options for a VLM")
        with self.lock:
            if not self.compatibility_mode:
                fold_final_norm(self)
            self.compatibility_mode = True

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Those of the whole model, tower and projector included."""
        return self.hf.parameters(recurse)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """Those of the whole model; ``checkpoints.weights`` gives them by their names in transformers."""
        return self.hf.named_parameters(*args, **kwargs)

    def train(self, mode: bool = True) -> VLMBridge:
        """Switch dropout; parameters stay frozen, see :func:`gatelens.training.fine_tune` for training."""
        super().train(mode)
        if "hf" in self.__dict__:
            self.hf.train(mode)
        return self

    def to(self, *args: Any, **kwargs: Any) -> VLMBridge:
        """Move the whole model to a device or dtype, as torch does. Save before you cast: the file is what is moved.

        Raises:
            ModelError: the weights are quantised, or placed by accelerate.
        """
        check_movable(self.hf, "this model cannot be moved or cast")
        super().to(*args, **{**kwargs, "print_details": False})
        self.hf.to(*args, **{name: value for name, value in kwargs.items() if name != "print_details"})
        return self

    def half(self) -> VLMBridge:
        return self.to(torch.float16)

    def bfloat16(self) -> VLMBridge:
        return self.to(torch.bfloat16)

    def float(self) -> VLMBridge:
        return self.to(torch.float32)

    def double(self) -> VLMBridge:
        return self.to(torch.float64)


def _ids(given: Any) -> Any:
    return given.ids if isinstance(given, VLMInputs) else given


def _refusal(name: str, instead: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ModelError(f"{name} has no meaning for a VLM: {instead}")

    refuse.__name__ = name
    refuse.__doc__ = f"Refused: {instead}."
    return refuse


for _name, _instead in REFUSED.items():
    setattr(VLMBridge, _name, staticmethod(_refusal(_name, _instead)))
