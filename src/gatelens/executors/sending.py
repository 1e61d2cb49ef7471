"""Work as bytes. A model is sent as the place it was loaded from, and loaded again on the worker."""

from __future__ import annotations

import io
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import torch

from gatelens.engine.plan import hooks_stand
from gatelens.errors import InputError, ModelError, WorkerError
from gatelens.hub_errors import one_line
from gatelens.identity import model_fingerprint
from gatelens.model import HookedVLM
from gatelens.model.loading import without_progress_bar

_SAVE = "save it by model.save_pretrained(folder) and load that"


@dataclass(frozen=True)
class ModelSource:
    """Where a model was loaded from, and what tells whether it is the same there.

    Attributes:
        name, options: of ``HookedVLM.from_pretrained``.
        attention: as the model computes it now.
        weights: their fingerprint.
    """

    name: str
    options: tuple[tuple[str, Any], ...]
    attention: str
    weights: str

    @classmethod
    def of(cls, model: HookedVLM) -> ModelSource:
        """Raises ModelError for a model that cannot be loaded again, or that holds hooks."""
        if model.loaded_from is None:
            raise ModelError(
                f"workers cannot load this {type(model.hf).__name__}, as it was wrapped by from_module or from_parts: "
                f"{_SAVE}, or leave workers= and ray= out"
            )
        if hooks_stand(model):
            raise ModelError(
                "the model has hooks from add_hook, which workers would not have: remove them by model.reset_hooks()"
            )
        name, options = model.loaded_from
        if torch.device(options.get("device") or "cpu").type == "cuda":
            options = {**options, "device": "cuda"}  # each worker is given one
        return cls(name, tuple(options.items()), model.attention, model_fingerprint(model))

    def load(self) -> HookedVLM:
        """The model, loaded here. Raises ModelError where it cannot be loaded, or is another."""
        try:
            with without_progress_bar():  # the bars of several processes would run into each other
                model = HookedVLM.from_pretrained(self.name, attention=self.attention, **dict(self.options))
        except Exception as error:  # no such folder there, no memory left on its GPU
            raise ModelError(
                f"a worker on {socket.gethostname()} cannot load the model ({one_line(error)}): it must be there under "
                "the name or folder that it was loaded from here, and fit into the worker's memory"
            ) from error
        if model_fingerprint(model) != self.weights:
            raise ModelError(
                f"a worker that loads '{self.name}' gets other weights than the model has here, which were changed "
                f"after it was loaded, or differ on that machine: {_SAVE}"
            )
        return model


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, source: Callable[[HookedVLM], ModelSource]) -> None:
        super().__init__(file)
        self._source = source

    def persistent_id(self, value: Any) -> ModelSource | None:
        return self._source(value) if isinstance(value, HookedVLM) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, model: Callable[[ModelSource], HookedVLM]) -> None:
        super().__init__(io.BytesIO(data))
        self.persistent_load = model  # type: ignore[method-assign]


def packed(value: Any, source: Callable[[HookedVLM], ModelSource]) -> bytes:
    """A value as bytes, its models by their source. Raises InputError for what cannot be sent."""
    file = io.BytesIO()
    try:
        _Pickler(file, source).dump(value)
    except ModelError:
        raise
    except Exception as error:  # whatever an object's own pickling trips over
        raise InputError(
            f"the work cannot be sent to workers ({one_line(error)}): let metrics and interventions hold no open "
            "files, locks or generators, or leave workers= and ray= out"
        ) from error
    return file.getvalue()


def unpacked(data: bytes, model: Callable[[ModelSource], HookedVLM]) -> Any:
    """What was packed, with models that ``model`` gives. Raises WorkerError for what cannot be read here."""
    try:
        return _Unpickler(data, model).load()
    except ModelError:
        raise
    except Exception as error:  # a module that is not here, an object's own code
        raise WorkerError(
            f"a worker cannot read the work ({one_line(error)}): what is sent must be importable there; define "
            "functions in the script itself, or install their module"
        ) from error
