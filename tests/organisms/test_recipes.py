"""The stages of training: which step belongs to which, and what they ask."""

import numpy as np
import pytest

from gatelens.data import scenes
from gatelens.organisms import documents, recipes


def test_each_step_belongs_to_one_stage_and_none_comes_after_the_last():
    parts = recipes.schedule(True, 400, noise=50, compose=120, cut=30)
    stages = [recipes.stage_of(step, parts) for step in range(600)]
    met = [stage for stage, _ in stages]
    assert met == ([recipes.MAIN] * 400 + [recipes.NOISE] * 50 + [recipes.COMPOSE] * 120 + [recipes.CUT] * 30)
    assert max(rate for stage, rate in stages if stage is recipes.CUT) <= 0.34
    assert [rate for _, rate in stages][200] == 1.0  # warm-up ends at step 200
    with pytest.raises(ValueError, match="step 600 is past the end of a schedule of 600"):
        recipes.stage_of(600, parts)
    llava = recipes.schedule(False, 400, noise=50, compose=120, presence=10)
    assert recipes.stage_of(405, llava)[0] is recipes.PRESENCE and sum(n for n, _, _ in llava) == 410


def test_presence_is_asked_of_as_much_that_is_there_as_is_not():
    rng = np.random.default_rng(0)
    for i in range(30):
        scene = scenes.scene("train", 2, i)
        names = {o.name for o in scene.objects}
        texts = documents.presence_texts(scene, rng, 4)
        assert len(set(texts)) == len(texts) == 2 * min(2, len(names))
        assert sum(answer == "yes" for _, answer in texts) == len(texts) // 2
        for prompt, answer in texts:
            assert (prompt.split("is there a ")[1].split(" ")[0] in names) == (answer == "yes")


def test_training_scenes_of_either_data_set_have_the_facts_of_their_pictures():
    for varied in (False, True):
        for unnamed in (False, True):
            texts = documents.SceneTexts(0, unnamed, varied)
            colors = {o.color for i in range(20) for o in texts.scene(i).objects}
            assert colors <= set(scenes.UNNAMED_COLORS if unnamed else scenes.COLORS)
    plain, varied = documents.SceneTexts(0), documents.SceneTexts(0, varied=True)
    assert any(plain.scene(i).objects != varied.scene(i).objects for i in range(5))
