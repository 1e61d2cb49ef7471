"""Fixtures every test can use: tiny models in the real transformers classes, wrapped and plain."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from transformers import ChameleonForConditionalGeneration, LlavaForConditionalGeneration

from browser_kit import browser, page  # noqa: F401  (fixtures)
from gatelens.engine.plan import hooks_stand
from gatelens.model import HookedVLM
from tiny_models import (
    make_chameleon,
    make_chameleon_processor,
    make_llava,
    make_llava_processor,
    make_picture,
)

_SHARED: list[HookedVLM] = []  # models of the whole session
# the oracles: plain transformers models that no hook has touched, with the same weights as the fixtures
_CHAMELEON = make_chameleon()
_LLAVA = make_llava()


@pytest.fixture(scope="session")
def hf_chameleon() -> ChameleonForConditionalGeneration:
    return _CHAMELEON


@pytest.fixture(scope="session")
def hf_llava() -> LlavaForConditionalGeneration:
    return _LLAVA


@pytest.fixture(scope="session")
def tiny_chameleon() -> HookedVLM:
    """4x4 image tokens between boi and eoi; 3 layers, 4 heads, 2 key-value heads, d_model 32."""
    _SHARED.append(HookedVLM.from_module(copy.deepcopy(_CHAMELEON), make_chameleon_processor()))
    return _SHARED[-1]


@pytest.fixture(scope="session")
def tiny_llava() -> HookedVLM:
    """4x4 image tokens, no markers; 3 layers, 4 heads, 2 key-value heads, d_model 32."""
    _SHARED.append(HookedVLM.from_module(copy.deepcopy(_LLAVA), make_llava_processor()))
    return _SHARED[-1]


@pytest.fixture(autouse=True)
def shared_models_stay_as_they_are() -> Iterator[None]:
    """A hook that one test leaves behind would be the next one's mystery."""
    yield
    for model in _SHARED:
        assert not hooks_stand(model), "a hook was left on a model that tests share"


@pytest.fixture(scope="session", params=["chameleon", "llava"])
def tiny(request: pytest.FixtureRequest) -> HookedVLM:
    """Either family, for what must hold in both."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def oracle(tiny: HookedVLM) -> Any:
    """Plain transformers with the weights of ``tiny``."""
    return {"chameleon": _CHAMELEON, "llava": _LLAVA}[tiny.family.name]


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    return make_picture()


@pytest.fixture
def one_image(tiny: HookedVLM, picture: Image.Image) -> Any:
    return tiny.prepare(picture, "this <image> animal is a")
