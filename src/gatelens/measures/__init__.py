"""Pure functions from tensors, strings and numbers to numbers; they know no model family and keep no state.

``logits`` holds the metrics a sweep takes (``gl.metrics``); the other modules measure attention, overlap,
answers, captions, the objects they name and where their words look, and say how sure a mean is. ``judge.LLMJudge``
alone talks to a server, and only when a user points it at one.
"""

from __future__ import annotations

from gatelens.measures.accuracy import accuracy, exact_match, restricted_accuracy
from gatelens.measures.attention import AttentionShare, attention_share, image_side_slots, standing_out
from gatelens.measures.captions import caption_words, cider_d
from gatelens.measures.concentration import (
    Carriers,
    greedy_order,
    label_information,
    naming_p_value,
    share_removed,
    smallest_carrying,
)
from gatelens.measures.density_peaks import DensityPeaks, adaptive_k, density_peaks, knn_density
from gatelens.measures.intrinsic_dimension import Dimension, gride, gride_by_scale, two_nn
from gatelens.measures.judge import (
    Judge,
    LLMJudge,
    OfflineJudge,
    judge_from_environment,
    judge_score,
    judge_table,
)
from gatelens.measures.localisation import (
    ImageAttention,
    layer_bands,
    localise,
    mean_localisation,
    paint,
    word_rows,
)
from gatelens.measures.mme import mme, yes_or_no
from gatelens.measures.mme import totals as mme_totals
from gatelens.measures.modality_gap import (
    CosineSpread,
    ModalityClusters,
    cosine_spread,
    homogeneity,
    modality_clusters,
)
from gatelens.measures.neighbours import Neighbours, distinct, nearest
from gatelens.measures.objects import (
    Mention,
    ObjectScore,
    Vocabulary,
    mean_scores,
    object_score,
    score_table,
)
from gatelens.measures.overlap import (
    distribution_overlap,
    median_cosine,
    neighbourhood_overlap,
    overlap_by_chance,
    representation_overlap,
)
from gatelens.measures.probe import Probe, linear_probe
from gatelens.measures.stats import (
    bootstrap_interval,
    bootstrap_replicates,
    paired_difference,
    replicate_interval,
    summary,
    wilson_interval,
)
from gatelens.measures.token_types import TokenTypeShare
from gatelens.measures.vqa import normalise_answer, vqa_accuracy
from gatelens.measures.windows import (
    Window,
    best_window,
    effect_of_starts,
    effect_of_windows,
    layer_windows,
    smallest_window,
)

__all__ = [
    "AttentionShare",
    "Carriers",
    "CosineSpread",
    "DensityPeaks",
    "Dimension",
    "ImageAttention",
    "Judge",
    "LLMJudge",
    "Mention",
    "ModalityClusters",
    "Neighbours",
    "ObjectScore",
    "OfflineJudge",
    "Probe",
    "TokenTypeShare",
    "Vocabulary",
    "Window",
    "accuracy",
    "adaptive_k",
    "attention_share",
    "best_window",
    "bootstrap_interval",
    "bootstrap_replicates",
    "caption_words",
    "cider_d",
    "cosine_spread",
    "density_peaks",
    "distinct",
    "distribution_overlap",
    "effect_of_starts",
    "effect_of_windows",
    "exact_match",
    "greedy_order",
    "gride",
    "gride_by_scale",
    "homogeneity",
    "image_side_slots",
    "judge_from_environment",
    "judge_score",
    "judge_table",
    "knn_density",
    "label_information",
    "layer_bands",
    "layer_windows",
    "linear_probe",
    "localise",
    "mean_localisation",
    "mean_scores",
    "median_cosine",
    "mme",
    "mme_totals",
    "modality_clusters",
    "naming_p_value",
    "nearest",
    "neighbourhood_overlap",
    "normalise_answer",
    "object_score",
    "overlap_by_chance",
    "paint",
    "paired_difference",
    "replicate_interval",
    "representation_overlap",
    "restricted_accuracy",
    "score_table",
    "share_removed",
    "smallest_carrying",
    "smallest_window",
    "standing_out",
    "summary",
    "two_nn",
    "vqa_accuracy",
    "wilson_interval",
    "word_rows",
    "yes_or_no",
]
