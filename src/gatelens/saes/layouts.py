"""Folders of autoencoders: SAELens's layout, and the one in which eai-sparsify saves its SparseCoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from gatelens.atomic_files import readable
from gatelens.errors import ModelError

CONFIG, WEIGHTS, SPARSIFY = "cfg.json", "sae_weights.safetensors", "sae.safetensors"


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors in a folder, under SAELens's names.

    Raises:
        ModelError: a file is missing or damaged, or holds what would be computed differently from how it was trained.
        OutputError: a file cannot be read.
    """
    weights = SPARSIFY if (folder / SPARSIFY).is_file() and not (folder / WEIGHTS).is_file() else WEIGHTS
    missing = [name for name in (CONFIG, weights) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{str(folder)!r} has no {missing[0]}: give a folder of SAELens or of eai-sparsify")
    try:
        with readable(folder):
            config = json.loads((folder / CONFIG).read_bytes())
            tensors = load((folder / weights).read_bytes())
    except (ValueError, SafetensorError, RecursionError) as error:
        raise ModelError(f"the SAE in {str(folder)!r} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{str(folder / CONFIG)!r} is not a JSON object: give an SAE in SAELens's layout")
    if weights == SPARSIFY:
        return _of_sparsify(folder, config, tensors)
    if "apply_b_dec_to_input" not in config:
        raise ModelError(
            f"{str(folder / CONFIG)!r} does not say apply_b_dec_to_input: add true or false, as it was trained"
        )
    return config, tensors


def _of_sparsify(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A SparseCoder: the strongest k of all features, of an input without b_dec."""
    other = [name for name in ("transcode", "skip_connection") if config.get(name)]
    if config.get("activation", "topk") != "topk":
        other.append(f"activation={config['activation']!r}")
    if other:
        raise ModelError(
            f"the SparseCoder in {str(folder)!r} has {other[0]}: only autoencoders with topk can be read"
        )
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    found = {names.get(name, name): one for name, one in tensors.items()}
    if "W_enc" in found:
        found["W_enc"] = found["W_enc"].T.contiguous()
    about = {
        "architecture": "topk",
        "k": config.get("k"),
        "apply_b_dec_to_input": True,
        "d_in": config.get("d_in"),
    }
    return about, found
