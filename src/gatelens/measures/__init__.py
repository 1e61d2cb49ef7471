"""Pure functions from tensors, strings and numbers to numbers; they know no model family and keep no state.

``logits`` holds the metrics a sweep takes (``gl.metrics``); the other modules measure attention, overlap,
answers and captions, and say how sure a mean is.
"""

from __future__ import annotations

from gatelens.measures.accuracy import accuracy, exact_match, restricted_accuracy
from gatelens.measures.attention import AttentionShare, attention_share, image_side_slots
from gatelens.measures.captions import caption_words, cider_d
from gatelens.measures.overlap import distribution_overlap, median_cosine, neighbourhood_overlap
from gatelens.measures.stats import bootstrap_interval, bootstrap_replicates
from gatelens.measures.vqa import normalise_answer, vqa_accuracy

__all__ = [
    "AttentionShare",
    "accuracy",
    "attention_share",
    "bootstrap_interval",
    "bootstrap_replicates",
    "caption_words",
    "cider_d",
    "distribution_overlap",
    "exact_match",
    "image_side_slots",
    "median_cosine",
    "neighbourhood_overlap",
    "normalise_answer",
    "restricted_accuracy",
    "vqa_accuracy",
]
