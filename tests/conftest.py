"""Fixtures every test can use: tiny models in the real transformers classes, wrapped and plain.

Libraries are imported where they are used: the process that hands out tests to workers loads this file too.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from browser_kit import browser, page  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from PIL import Image
    from transformers import ChameleonForConditionalGeneration, LlavaForConditionalGeneration

    from gatelens.model import HookedVLM

_SHARED: list[HookedVLM] = []  # models of the whole session


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collecting makes, modules and tests, lives to the end: the garbage collector never walks through it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def hf_chameleon() -> ChameleonForConditionalGeneration:
    """The oracle: a plain transformers model that no hook has touched, with the weights of ``tiny_chameleon``."""
    from tiny_models import make_chameleon

    return make_chameleon()


@pytest.fixture(scope="session")
def hf_llava() -> LlavaForConditionalGeneration:
    """The oracle: a plain transformers model that no hook has touched, with the weights of ``tiny_llava``."""
    from tiny_models import make_llava

    return make_llava()


@pytest.fixture(scope="session")
def tiny_chameleon(hf_chameleon: ChameleonForConditionalGeneration) -> HookedVLM:
    """4x4 image tokens between boi and eoi; 3 layers, 4 heads, 2 key-value heads, d_model 32."""
    from gatelens.model import HookedVLM
    from tiny_models import make_chameleon_processor

    _SHARED.append(HookedVLM.from_module(copy.deepcopy(hf_chameleon), make_chameleon_processor()))
    return _SHARED[-1]


@pytest.fixture(scope="session")
def tiny_llava(hf_llava: LlavaForConditionalGeneration) -> HookedVLM:
    """4x4 image tokens, no markers; 3 layers, 4 heads, 2 key-value heads, d_model 32."""
    from gatelens.model import HookedVLM
    from tiny_models import make_llava_processor

    _SHARED.append(HookedVLM.from_module(copy.deepcopy(hf_llava), make_llava_processor()))
    return _SHARED[-1]


@pytest.fixture(autouse=True)
def shared_models_stay_as_they_are() -> Iterator[None]:
    """A hook that one test leaves behind would be the next one's mystery."""
    yield
    if _SHARED:
        from gatelens.engine.plan import hooks_stand

        assert not any(map(hooks_stand, _SHARED)), "a hook was left on a model that tests share"


@pytest.fixture(scope="session", params=["chameleon", "llava"])
def tiny(request: pytest.FixtureRequest) -> HookedVLM:
    """Either family, for what must hold in both."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def oracle(tiny: HookedVLM, request: pytest.FixtureRequest) -> Any:
    """Plain transformers with the weights of ``tiny``."""
    return request.getfixturevalue(f"hf_{tiny.family.name}")


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    from tiny_models import make_picture

    return make_picture()


@pytest.fixture
def one_image(tiny: HookedVLM, picture: Image.Image) -> Any:
    return tiny.prepare(picture, "this <image> animal is a")
