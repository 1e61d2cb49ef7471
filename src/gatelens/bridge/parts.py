"""Parts: a decoder of transformers and any picture encoder, as one model.

The general route for models whose code transformers does not have (VILA-U, research models): the decoder is
wrapped as TransformerLens knows it, the encoder is a function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gatelens.errors import InputError, ModelError


class Parts(nn.Module):
    """Behaves as transformers' image-text models: ``input_ids`` and ``pixel_values`` in, logits and cache out.

    Args:
        language_model: a causal language model of transformers.
        embed_images: from pixels to features, one row for each placeholder.
        placeholder_id: the id that represents a feature.
        evidence: names of tensors that go to ``embed_images`` by keyword instead of to the decoder.

    Raises:
        ModelError: the placeholder has no row in the decoder's embedding, or the encoder cannot be called.
    """

    def __init__(
        self,
        language_model: Any,
        embed_images: Callable[..., Tensor],
        placeholder_id: int,
        evidence: Collection[str] = (),
    ) -> None:
        super().__init__()
        if not callable(embed_images):
            raise ModelError(
                f"embed_images is a {type(embed_images).__name__}: give a function from pixel values to features"
            )
        n_ids = language_model.get_input_embeddings().weight.shape[0]
        if not 0 <= placeholder_id < n_ids:
            raise ModelError(
                f"placeholder id {placeholder_id} is outside the decoder's vocabulary of {n_ids}: choose a spare id "
                "of it and write it once for each picture feature"
            )
        self.language_model = language_model
        self.embed_images = embed_images
        self.placeholder_id = placeholder_id
        self.evidence = tuple(evidence)

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        pixel_values: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The decoder's output over text embeddings with picture features at the placeholders."""
        embeds = self.language_model.get_input_embeddings()(input_ids)
        known = {name: kwargs.pop(name) for name in self.evidence if name in kwargs}
        if pixel_values is not None:
            features = self.embed_images(pixel_values, **known)
            embeds = _placed(embeds, input_ids == self.placeholder_id, features)
        return self.language_model(inputs_embeds=embeds, **kwargs)

    @property
    def config(self) -> Any:
        return self.language_model.config

    @property
    def generation_config(self) -> Any:
        return getattr(self.language_model, "generation_config", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.dtype

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()


def _placed(
    embeds: Float[Tensor, "batch pos d_model"], where: Tensor, features: Tensor
) -> Float[Tensor, "batch pos d_model"]:
    """Features in place of the embeddings of the placeholders, in order. Raises InputError on other shapes."""
    wanted = (int(where.sum()), embeds.shape[-1])
    if not isinstance(features, Tensor):
        raise InputError(
            f"embed_images gave a {type(features).__name__}: return one tensor, [features, d_model]"
        )
    rows = features.flatten(0, 1) if features.ndim == 3 else features
    if tuple(rows.shape) != wanted:
        raise InputError(
            f"embed_images gave {tuple(features.shape)} for {wanted[0]} placeholders of width {wanted[1]}: "
            "return one row of d_model numbers for each placeholder"
        )
    return embeds.masked_scatter(where[..., None], rows.to(embeds))
