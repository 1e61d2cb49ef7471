"""Pure functions from tensors, strings and numbers to numbers; they know no model family and keep no state.

``logits`` holds the metrics a sweep takes (``metrics``, ``gl.metrics``); the other modules measure attention, overlap,
answers, captions, the objects they name and where their words look, and say how sure a mean is (``stats``).
``judge.LLMJudge`` alone talks to a server, and only when a user points it at one.

>>> low, high = gl.measures.wilson_interval(45, 50)
>>> round(low, 3), round(high, 3)
(0.786, 0.957)
"""

from __future__ import annotations

from gatelens.measures import logits as metrics
from gatelens.measures.agreement import Agreement, agreement
from gatelens.measures.answers import accuracy, exact_match, restricted_accuracy, vqa_accuracy
from gatelens.measures.attention import AttentionShare, attention_share
from gatelens.measures.captions import cider_d
from gatelens.measures.clusters import density_peaks, knn_density
from gatelens.measures.concentration import (
    Carriers,
    label_information,
    naming_p_value,
    share_removed,
    smallest_carrying,
)
from gatelens.measures.heads import subset_regression
from gatelens.measures.intrinsic_dimension import gride, two_nn
from gatelens.measures.judge import LLMJudge, OfflineJudge, judge_table
from gatelens.measures.localisation import ImageAttention, localise
from gatelens.measures.mme import mme_scores, mme_totals, yes_or_no
from gatelens.measures.modality_gap import cosine_spread, homogeneity, modality_clusters
from gatelens.measures.neighbours import nearest
from gatelens.measures.objects import Vocabulary, object_score
from gatelens.measures.overlap import (
    distribution_overlap,
    neighbourhood_overlap,
    representation_overlap,
)
from gatelens.measures.probe import Probe, linear_probe
from gatelens.measures.stats import (
    drawn_means,
    mean_interval,
    middle,
    paired_difference,
    summary,
    wilson_interval,
)
from gatelens.measures.token_types import TokenTypeShare
from gatelens.measures.windows import best_window, smallest_window

__all__ = [
    "Agreement",
    "AttentionShare",
    "Carriers",
    "ImageAttention",
    "LLMJudge",
    "OfflineJudge",
    "Probe",
    "TokenTypeShare",
    "Vocabulary",
    "accuracy",
    "agreement",
    "attention_share",
    "best_window",
    "cider_d",
    "cosine_spread",
    "density_peaks",
    "distribution_overlap",
    "drawn_means",
    "exact_match",
    "gride",
    "homogeneity",
    "judge_table",
    "knn_density",
    "label_information",
    "linear_probe",
    "localise",
    "mean_interval",
    "metrics",
    "middle",
    "mme_scores",
    "mme_totals",
    "modality_clusters",
    "naming_p_value",
    "nearest",
    "neighbourhood_overlap",
    "object_score",
    "paired_difference",
    "representation_overlap",
    "restricted_accuracy",
    "share_removed",
    "smallest_carrying",
    "smallest_window",
    "subset_regression",
    "summary",
    "two_nn",
    "vqa_accuracy",
    "wilson_interval",
    "yes_or_no",
]
