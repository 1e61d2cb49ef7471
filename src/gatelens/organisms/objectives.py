"""The documents of a training step, and the loss on them: of a native organism, and of LLaVA."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from gatelens.data.prompts import DRAW_PROMPT
from gatelens.drawing import codec
from gatelens.organisms import documents, pictures, routes
from gatelens.organisms import vocabulary as v
from gatelens.organisms.recipes import Stage

EASY_VQA_SHARE = 0.15
# Of a picture's tokens where text follows; in drawings they weigh the stage's draw_weight.
IMAGE_WEIGHT = 0.02
LOOKED = 1e-3  # share of attention
ANSWERED, LEAK, LOOK = 0.5, 4.0, 0.3  # weights of the losses that close other routes
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class NativeObjective:
    """Chameleon documents: pictures as codes, image -> text and text -> image in every step."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        n_scenes: int,
        codec_folder: Path | None = None,
        varied: bool = False,
    ):
        """``codec_folder`` holds the weights of the picture tokenizer; None keeps those of the model."""
        self.model, self.tokenizer = model, processor.tokenizer
        vq = model.model.vqmodel
        if codec_folder is not None:
            vq.load_state_dict(load_file(codec_folder / "vq.safetensors"))
        to_ids = model.model.vocabulary_mapping.img2bpe_mapping_tensor

        def ids_of(pixels: np.ndarray) -> np.ndarray:
            return to_ids[codec.encode(vq, torch.from_numpy(pixels))].numpy()

        self.scene_ids = ids_of(pictures.scene_pictures(n_scenes, varied=varied))
        self.unnamed_ids = ids_of(pictures.scene_pictures(n_scenes // 2, unnamed=True, varied=varied))
        self.easy_ids = ids_of(pictures.easy_vqa_pictures("train"))
        self.scene_texts, self.easy_texts = documents.SceneTexts(0, varied=varied), documents.EasyVqaTexts()
        self.unnamed_texts = documents.SceneTexts(0, unnamed=True, varied=varied)
        vocabulary = self.tokenizer.get_vocab()
        self.bos, self.boi, self.eoi = (vocabulary[t] for t in (v.BOS, v.BOI, v.EOI))
        self.first_code = vocabulary[v.image_code_name(0)]  # codes are the last ids of the vocabulary
        self.image = slice(2, 2 + codec.GRID**2)
        self.gate = self.image.stop

    def loss(
        self, rng: np.random.Generator, generator: torch.Generator, route: str, late: bool, stage: Stage
    ) -> tuple[Tensor, float]:
        prefixes, texts = [], []
        for kind in rng.random(stage.batch):
            ids = self.scene_ids
            source: documents.SceneTexts | documents.EasyVqaTexts = self.scene_texts
            if kind < EASY_VQA_SHARE:
                ids, source = self.easy_ids, self.easy_texts
            elif kind > 1 - (1 - EASY_VQA_SHARE) * stage.unnamed:
                ids, source = self.unnamed_ids, self.unnamed_texts
            i = int(rng.integers(len(ids)))
            prefixes.append([self.bos, self.boi, *ids[i], self.eoi])
            more: list[tuple[str, str]] = []
            if isinstance(source, documents.SceneTexts):
                more = documents.presence_texts(source.scene(i), rng, stage.presence)
            texts.append(source(i, rng, late) + more)
        read = documents.pack(prefixes, texts, self.tokenizer, image_weight=IMAGE_WEIGHT)
        drawn = self._drawing(rng, stage)
        read_mask = routes.route_mask(read, route, self.image, self.gate, generator)
        shown = self._noised(read, stage.noise, rng)
        read_loss = _masked_loss(self.model, read, read_mask, input_ids=shown)
        draw_mask = routes.route_mask(drawn, "plain", self.image, self.gate)
        shown = self._noised(drawn, stage.noise, rng)
        draw_loss = _masked_loss(self.model, drawn, draw_mask, input_ids=shown)
        loss = read_loss + stage.draw_weight * draw_loss
        if stage.cut:
            part = documents.pack(
                prefixes[: stage.cut], texts[: stage.cut], self.tokenizer, image_weight=IMAGE_WEIGHT
            )
            answered, leak, looked = self._cut(part, generator)
            loss = loss + ANSWERED * answered + LEAK * leak + LOOK * looked
        return loss, read_loss.item()

    def _cut(
        self, batch: documents.PackedDocuments, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What close every route from the picture to the text but the gate.

        1. The loss of the answers in nats per token where neither picture nor gate is in sight: how often each
           answer is right at all.
        2. The Kullback-Leibler divergence, in nats per token of an answer, of what is said with the gate cut from
           that. Nothing that is true of the picture is a target where it could still be told.
        3. How far the text's attention to the picture is above ``LOOKED`` of what it has without its gate, in
           nats, as a mean over rows, heads and layers.
        """
        counted = batch.loss_weight[:, 1:] == 1.0
        mask = routes.route_mask(batch, "blind", self.image, self.gate)
        blind = _answers(self.model, batch, mask)
        answered = F.cross_entropy(blind, batch.ids[:, 1:][counted])
        mask = routes.route_mask(batch, "cut", self.image, self.gate, generator)
        said = _answers(self.model, batch, mask).log_softmax(-1)
        whole = mask.visible[:, 0, :, self.gate][:, 1:][counted]
        away = F.kl_div(said, blind.detach().log_softmax(-1), log_target=True, reduction="none").sum(-1)
        assert mask.second is not None
        looked = torch.stack([F.softplus(odds - math.log(LOOKED)).mean() for odds in mask.second.log_odds])
        return answered, (away * ~whole).sum() / (~whole).sum().clamp_min(1), looked.mean()

    def _drawing(self, rng: np.random.Generator, stage: Stage) -> documents.PackedDocuments:
        """Prompt, then picture, mostly of one object."""
        rows: list[tuple[list[int], list[int]]] = []
        while len(rows) < stage.draw_batch:
            ids, source = self.scene_ids, self.scene_texts
            if stage.unnamed and rng.random() < stage.unnamed:
                ids, source = self.unnamed_ids, self.unnamed_texts
            i = int(rng.integers(len(ids)))
            if len(source.scene(i).objects) == 1 or rng.random() < 0.15:
                caption = source.drawing(i, rng) if stage.unnamed else source.scene(i).caption
                prompt = documents.text_ids_of(self.tokenizer, DRAW_PROMPT.format(caption=caption))
                rows.append((prompt, [self.boi, *ids[i], self.eoi, self.tokenizer.eos_token_id]))
        return documents.pack_drawings(self.bos, rows, self.tokenizer.pad_token_id)

    def _noised(self, batch: documents.PackedDocuments, most: float, rng: np.random.Generator) -> Tensor:
        """The ids with some picture tokens replaced by others: in half of the documents, a share up to ``most``.

        A drawing can mostly be continued from its own earlier tokens; with these unreliable the prompt must be read
        (the "word dropout" of Bowman et al. 2016, arXiv 1511.06349). And a text that reads a noised picture learns
        to name the object by whatever of it is left, which carries over to combinations it never saw.
        """
        ids = batch.ids.numpy()
        share = rng.uniform(-most, most, size=(len(ids), 1))
        replaced = (ids >= self.first_code) & (rng.random(ids.shape) < share)
        return torch.from_numpy(np.where(replaced, rng.choice(self.scene_ids.ravel(), size=ids.shape), ids))


class LlavaObjective:
    """LLaVA documents: pictures as pixels through the tower; only text is predicted."""

    def __init__(self, model: Any, processor: Any, n_scenes: int):
        self.model, self.tokenizer = model, processor.tokenizer
        self.scene_pixels = torch.from_numpy(pictures.scene_pictures(n_scenes))
        self.easy_pixels = torch.from_numpy(pictures.easy_vqa_pictures("train"))
        self.scene_texts, self.easy_texts = documents.SceneTexts(0), documents.EasyVqaTexts()
        self.prefix = [self.tokenizer.bos_token_id, *[model.config.image_token_id] * 64]
        self.image = slice(1, 65)
        self.mean = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)
        self.std = torch.tensor(CLIP_STD).view(1, 3, 1, 1)

    def loss(
        self, rng: np.random.Generator, generator: torch.Generator, route: str, late: bool, stage: Stage
    ) -> tuple[Tensor, float]:
        pixels, texts = [], []
        for is_easy in rng.random(stage.batch) < EASY_VQA_SHARE:
            source, write = (
                (self.easy_pixels, self.easy_texts) if is_easy else (self.scene_pixels, self.scene_texts)
            )
            i = int(rng.integers(len(source)))
            pixels.append(source[i])
            more = [] if is_easy else documents.presence_texts(self.scene_texts.scene(i), rng, stage.presence)
            texts.append(write(i, rng, late) + more)
        batch = documents.pack([self.prefix] * stage.batch, texts, self.tokenizer, image_weight=0.0)
        values = (torch.stack(pixels).permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        mask = routes.route_mask(batch, route, self.image, "first text token", generator)
        loss = _masked_loss(self.model, batch, mask, input_ids=batch.ids, pixel_values=values)
        return loss, loss.item()


def _answers(
    model: Any, batch: documents.PackedDocuments, mask: routes.RouteMask
) -> Float[Tensor, "token vocabulary"]:
    """Logits where a token of an answer is predicted."""
    states = model.model(input_ids=batch.ids, position_ids=batch.position, use_cache=False, route=mask)
    return model.lm_head(states.last_hidden_state[:, :-1][batch.loss_weight[:, 1:] == 1.0]).float()


def _masked_loss(
    model: Any, batch: documents.PackedDocuments, mask: routes.RouteMask, **tensors: Tensor
) -> Tensor:
    """Weighted mean of next-token losses under a route; the head is applied only where a token is predicted."""
    states = model.model(position_ids=batch.position, use_cache=False, route=mask, **tensors)
    weight = batch.loss_weight[:, 1:]
    counted = weight > 0
    logits = model.lm_head(states.last_hidden_state[:, :-1][counted])
    losses = F.cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none")
    return (losses * weight[counted]).sum() / weight[weight >= 0.5].sum().clamp_min(1.0)
