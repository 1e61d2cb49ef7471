"""The papers' settings by name: what the data sets say of them, and what the studies add."""

from __future__ import annotations

import inspect

import pytest

from gatelens import data, studies
from gatelens.errors import DataError
from gatelens.studies.runner import run_study


@pytest.mark.parametrize("study", ["narrow_gate", "whats_in_the_image"])
def test_a_preset_names_parameters_the_study_has(study: str) -> None:
    settings = studies.preset("paper", study.replace("_", "-")).settings
    function = inspect.signature(getattr(studies, study)).parameters
    runner = inspect.signature(run_study).parameters
    known = {*studies.STUDIES[study.replace("_", "-")].options.model_fields, *function, *runner}
    assert set(settings) <= known


@pytest.mark.parametrize("study", ["narrow-gate", "whats-in-the-image"])
def test_a_preset_holds_what_the_paper_measured_on(study: str) -> None:
    of_data, of_study = data.preset("paper", study), studies.preset("paper", study)
    assert of_data.settings.items() <= of_study.settings.items() and of_data.paper == of_study.paper
    assert {"how", "sections", "preset"}.isdisjoint(of_data.settings)


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
