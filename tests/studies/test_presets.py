"""The papers' settings by name: data, sizes, seeds, decoding, and how they measure."""

from __future__ import annotations

import inspect

import pytest

from gatelens import studies
from gatelens.errors import DataError
from gatelens.studies.runner import run_study


@pytest.mark.parametrize("study", ["narrow_gate", "whats_in_the_image"])
def test_a_preset_names_parameters_the_study_has(study: str) -> None:
    settings = studies.preset("paper", study.replace("_", "-")).settings
    function = inspect.signature(getattr(studies, study)).parameters
    runner = inspect.signature(run_study).parameters
    known = {*studies.STUDIES[study.replace("_", "-")].options.model_fields, *function, *runner}
    assert set(settings) <= known


def test_what_the_papers_measured_on() -> None:
    settings = studies.preset("paper").settings
    assert settings["data"] == "vqav2,flickr30k,coco,imagenet"
    assert (settings["n_vqa"], settings["n_caption"], settings["n_class"]) == (2000, 2000, 2000)
    assert (settings["vqa_tokens"], settings["caption_tokens"]) == (20, 60)
    other = studies.preset("paper", "whats-in-the-image").settings
    assert (other["data"], other["n"], other["seed"]) == ("coco-objects,mme", 80, 42)


def test_how_the_narrow_gate_paper_measures() -> None:
    settings = studies.preset("paper").arguments(limit=5, how="both", seed=None)
    assert (settings["how"], settings["seed"], settings["limit"]) == ("both", 42, 5)
    assert studies.preset("paper").settings["how"] == "zero"
    assert settings["random_tokens"] == 10
    assert settings["random_repeats"] == {"vqa": 5, "caption": 3, "class": 3}
    assert settings["sections"]["modality_gap"] == {"n": 10_000}


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(DataError, match="no preset 'papers' for narrow-gate; use paper"):
        studies.preset("papers")
