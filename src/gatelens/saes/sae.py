"""``gl.SAE``: a sparse autoencoder of activations, in the layout SAELens writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from gatelens.activation_store import ActivationStore
from gatelens.atomic_files import as_path, check_writable, write_atomic
from gatelens.errors import InterventionError, ModelError, did_you_mean, shown, whole_number
from gatelens.interventions.arguments import Layers, as_flag, as_indices, as_number
from gatelens.interventions.sites import SITES, check_site, hook_name
from gatelens.saes.features import FeatureHits, top_patches
from gatelens.saes.formulas import ENCODERS, FURTHER, NORMALIZATIONS, decoded, normalized
from gatelens.saes.layouts import CONFIG, WEIGHTS, read_folder
from gatelens.saes.splicing import Splice
from gatelens.tokens import SelectorLike

_SPLICED = (*SITES, "neuron")


@dataclass(frozen=True, eq=False, repr=False)
class SAE:
    """A sparse autoencoder: an activation as a few of many features, and the activation they give.

    Load one with :meth:`load`, or make one of the tensors a trainer holds::

        gl.SAE({"architecture": "topk", "k": 32, "apply_b_dec_to_input": True, "hook_name": "blocks.3.hook_resid_post"},
               {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec})

    Attributes:
        config: as in SAELens's ``cfg.json``: ``architecture`` (``standard``, ``topk``, ``jumprelu``, ``gated``), its
            settings, and ``hook_name``, the hook point of a block it was trained on.
        weights: ``W_enc`` [d_in, d_sae], ``W_dec`` [d_sae, d_in], ``b_dec`` [d_in] and, each [d_sae], ``b_enc``,
            ``threshold`` (jumprelu); or ``b_gate``, ``b_mag``, ``r_mag`` (gated).

    Raises:
        ModelError: unknown settings or tensors, or tensors that are missing or of other shapes.

    Example:
        >>> weights = {"W_enc": torch.eye(8), "W_dec": torch.eye(8), "b_enc": torch.zeros(8), "b_dec": torch.zeros(8)}
        >>> sae = gl.SAE({"architecture": "topk", "k": 2, "hook_name": "blocks.3.hook_resid_post"}, weights)
        >>> sae.encode(torch.arange(8.0)[None]).nonzero().tolist()  # [row, feature]
        [[0, 6], [0, 7]]
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        _check_config(self.config)
        _check_weights(self.config, self.weights)

    @property
    def d_in(self) -> int:
        """How many numbers an activation has; heads are laid side by side."""
        return int(self.weights["W_dec"].shape[1])

    @property
    def d_sae(self) -> int:
        """How many features there are."""
        return int(self.weights["W_dec"].shape[0])

    @property
    def place(self) -> tuple[str, int] | None:
        """The site and layer it was trained on, where the config names them."""
        name = self.config.get("hook_name") or (self.config.get("metadata") or {}).get("hook_name")
        layer = re.match(r"blocks\.(\d+)\.", str(name))
        if layer is None:
            return None
        number = int(layer[1])
        return next(((site, number) for site in _SPLICED if hook_name(site, number) == name), None)

    def __repr__(self) -> str:
        where = "" if self.place is None else f", {self.place[0]} of layer {self.place[1]}"
        return f"SAE({self.config['architecture']}: {self.d_in} → {self.d_sae} features{where})"

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> SAE:
        """Read a folder of SAELens, or one in which eai-sparsify saved a ``SparseCoder``, as float32.

        The first holds ``cfg.json`` and ``sae_weights.safetensors``, the second ``cfg.json`` and ``sae.safetensors``.
        The second does not say where it was trained: say site= and layers= when it is spliced in.

        Raises:
            ModelError: a file is missing or damaged, or what the class raises.
            OutputError: a file cannot be read.
        """
        config, weights = read_folder(as_path(path))
        return cls(config, {name: one.to(device, torch.float32) for name, one in weights.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it in the same layout.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = check_writable(path)
        given = {name: one.detach().cpu().contiguous() for name, one in self.weights.items()}
        write_atomic(folder / WEIGHTS, save(given))
        said = {"apply_b_dec_to_input": False, **self.config}  # what a reader would else have to guess
        config = {**said, "d_in": self.d_in, "d_sae": self.d_sae}
        write_atomic(folder / CONFIG, json.dumps(config, indent=1).encode())

    def to(self, device: str | torch.device) -> SAE:
        """The same on a device."""
        return replace(self, weights={name: one.to(device) for name, one in self.weights.items()})

    def encode(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_sae"]:
        """The features of activations; at sites with heads [row, head, d_head] is taken too.

        Raises:
            InterventionError: activations of another width.
        """
        return self.changed(x, lambda features: None)[0]

    def decode(self, features: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_in"]:
        """The activations of features; not for one that normalises its input, which :meth:`reconstruct` undoes.

        Raises:
            InterventionError: a wrong number of features, or an SAE that normalises its input.
        """
        if features.shape[-1] != self.d_sae or self._normalization != "none":
            why = "decoding needs the input, call reconstruct(x)" if self._normalization != "none" else ""
            raise InterventionError(
                f"decode: {why or f'{features.shape[-1]} features, {self!r} has {self.d_sae}'}"
            )
        return decoded(features, self.weights, self.config)

    def reconstruct(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_in"]:
        """Activations encoded and decoded again."""
        return self.changed(x, lambda features: None)[1]

    def changed(self, x: Tensor, change: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(features, reconstruction, reconstruction from changed features) of activations.

        Args:
            change: makes other features of them, Float[row, d_sae] to the same; None leaves them.
        """
        own = self.weights["W_enc"]
        rows = x.to(own.dtype)
        wide = rows.shape[-1] != self.d_in and rows.ndim > 1 and rows.shape[-2] * rows.shape[-1] == self.d_in
        rows = rows.flatten(-2) if wide else rows
        if rows.shape[-1] != self.d_in:
            raise InterventionError(
                f"{self!r} reads {self.d_in} numbers per position, and the input has {tuple(x.shape[1:])}"
            )
        into, back = normalized(rows, self._normalization)
        if self.config.get("apply_b_dec_to_input"):
            features = self._encoder(into - self.weights["b_dec"], self.weights, self.config)
        else:
            features = self._encoder(into, self.weights, self.config)
        plain = back(decoded(features, self.weights, self.config)).view(x.shape)
        other = change(features.clone())
        new = plain if other is None else back(decoded(other, self.weights, self.config)).view(x.shape)
        return features, plain, new

    @property
    def _encoder(self) -> Any:
        return ENCODERS[self.config["architecture"]]

    @property
    def _normalization(self) -> str:
        return self.config.get("normalize_activations") or "none"

    def splice(
        self,
        at: SelectorLike,
        site: str | None = None,
        layers: Layers = None,
        *,
        ablate: Sequence[int] | int = (),
        steer: Mapping[int, float] | None = None,
        keep_error: bool = True,
        masks: Mapping[str, Any] | None = None,
    ) -> Splice:
        """Replace activations at ``at`` by the autoencoder's, with some features changed, as an intervention.

        As in ``model.run(inputs, [sae.splice("image", ablate=[7])])``; in a sweep its runs share work as others do.

        Args:
            at: selector of the positions.
            site, layers: where; None is where it was trained.
            ablate: features that are set to 0, one or several.
            steer: by feature, what is added to its activation, which may end below 0.
            keep_error: add what the autoencoder does not reconstruct, so that only changed features make a
                difference; False leaves its reconstruction alone.
            masks: pixel masks by the names that selectors use, as ``gl.edit`` takes them.

        Raises:
            InterventionError: no such feature, nothing that would change, or a place that is not known. When run:
                activations of another width.
        """
        if (site is None or layers is None) and self.place is None:
            raise InterventionError(
                f"{self!r}: its config names no hook point of a block; give site= and layers="
            )
        site = site if site is not None else self.place[0]  # type: ignore[index]
        check_site(site, _SPLICED)
        number = layers if layers is not None else self.place[1]  # type: ignore[index]
        off = self._features(ablate, "ablate")
        by_feature = {} if steer is None else steer
        if not isinstance(by_feature, Mapping):
            raise InterventionError(f"steer={shown(steer)}: give a dict, {{feature: what is added to it}}")
        added = {
            self._feature(one, "steer"): as_number(by, f"steer[{one}]") for one, by in by_feature.items()
        }
        both = sorted(set(off) & set(added))
        if both:
            raise InterventionError(f"feature {both[0]} is in ablate and in steer; leave it in one")
        if as_flag(keep_error, "keep_error") and not off and not added:
            raise InterventionError(
                "nothing would change: name features, ablate= or steer=, or say keep_error=False to see what the "
                "reconstruction does"
            )
        return Splice(
            at, site, sae=self, off=off, added=added, keep_error=keep_error,
            layers=as_indices(number, "layers"), masks=masks,
        )  # fmt: skip

    def features(
        self, store: ActivationStore, which: Sequence[int] | int, data: Any = None, *, top: int = 8,
        where: str | None = None, progress: bool = True,
    ) -> FeatureHits:  # fmt: skip
        """Where some features are strongest in a store: the pictures, and in each the patch.

        Args:
            store: what :func:`gatelens.collect` kept at the place of the autoencoder.
            which: numbers of features.
            data: the examples the store was made of, for :meth:`FeatureHits.show`: a list of them.
            top: pictures for each feature at most, each once. A row without a picture counts by its example.
            where: only rows of the store that its ``index.query`` gives, as ``"role == 'image'"``.
            progress: show a progress bar.

        Raises:
            InterventionError: no such feature.
            InputError: the store has nothing at that place, or no such rows.
        """
        chosen = self._features(which, "which")
        site, layer = self.place or (None, None)
        device, point = self.weights["W_enc"].device, store.point(site, layer)

        def encode(x: Tensor) -> Tensor:
            return self.encode(x.to(device)).cpu()

        return top_patches(encode, store, point, chosen, data, top, where, progress)

    def _features(self, which: Any, word: str) -> tuple[int, ...]:
        """The features that one number or several name, each once."""
        several = [which] if whole_number(which) is not None else which
        if isinstance(several, str) or not isinstance(several, Iterable):
            raise InterventionError(f"{word}={shown(which)}: give the number of a feature, or a list of them")
        return tuple(dict.fromkeys(self._feature(one, word) for one in several))

    def _feature(self, number: Any, word: str) -> int:
        found = whole_number(number)
        if found is None or not 0 <= found < self.d_sae:
            raise InterventionError(
                f"{word}: {shown(number)} is not a feature of {self!r}; they are 0 to {self.d_sae - 1}"
            )
        return found


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse what would be computed differently from how it was trained."""
    architecture = config.get("architecture")
    if architecture not in ENCODERS:
        known = ", ".join(ENCODERS)
        said = "no architecture" if architecture is None else f"architecture {architecture!r}"
        raise ModelError(
            f"cfg.json names {said}: one of {known} can be read{did_you_mean(str(architecture), ENCODERS)}"
        )
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if function != "relu":
        raise ModelError(
            f"activation function {shown(function)} of an older SAELens is not read: save it again with SAELens 6"
        )
    how = config.get("normalize_activations") or "none"
    if how not in NORMALIZATIONS:
        fix = (
            "fold its factor into the weights and save it again"
            if how == "expected_average_only_in"
            else "unknown"
        )
        raise ModelError(f"normalize_activations={shown(how)} cannot be undone from the file: {fix}")
    if (config.get("reshape_activations") or "none") not in ("none", "hook_z"):
        raise ModelError(
            f"reshape_activations={shown(config['reshape_activations'])} is unknown; none and hook_z are known"
        )
    if config.get("finetuning_scaling_factor") or config.get("normalize_decoder"):
        name = "finetuning_scaling_factor" if config.get("finetuning_scaling_factor") else "normalize_decoder"
        raise ModelError(f"{name} is not known here: fold it into the weights and save them again")
    k = whole_number(config.get("k"))
    if architecture == "topk" and (k is None or k < 1):
        raise ModelError(
            f"an SAE of architecture 'topk' needs k in its config, a whole number from 1 on, not {config.get('k')!r}"
        )
    rescaled = config.get("rescale_acts_by_decoder_norm")
    if rescaled and architecture != "topk":
        raise ModelError(f"rescale_acts_by_decoder_norm goes with topk, not with {architecture}")


def _check_weights(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Each tensor is there, fits the others and is finite; none is left over."""
    architecture = config["architecture"]
    wanted = ("W_enc", "W_dec", "b_dec", *FURTHER[architecture])
    missing = [name for name in wanted if name not in weights]
    further = [name for name in weights if name not in wanted]
    if missing or further:
        what = f"has no {missing[0]}" if missing else f"has {further[0]}, which is not known"
        raise ModelError(
            f"an SAE of architecture {architecture!r} {what}: its tensors are {', '.join(wanted)}"
        )
    if weights["W_dec"].ndim != 2:
        raise ModelError(f"W_dec has shape {tuple(weights['W_dec'].shape)}: it is [d_sae, d_in]")
    d_sae, d_in = weights["W_dec"].shape
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name in wanted:
        shape = shapes.get(name, (d_sae,))
        if tuple(weights[name].shape) != shape or not bool(weights[name].isfinite().all()):
            raise ModelError(
                f"{name} has shape {tuple(weights[name].shape)}: it is {shape} of finite numbers beside W_dec"
            )
    for name, size in (("d_in", d_in), ("d_sae", d_sae)):
        if config.get(name) not in (None, size):
            raise ModelError(f"cfg.json says {name}={config[name]!r}, and the weights have {size}")
    if architecture == "topk" and int(config["k"]) > d_sae:
        raise ModelError(f"k={config['k']} is more than the {d_sae} features")
