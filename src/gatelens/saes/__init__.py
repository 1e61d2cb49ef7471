"""Sparse autoencoders on activations: load one, put it into a run, look at what its features represent."""

from gatelens.saes.features import FeatureHits
from gatelens.saes.sae import SAE
from gatelens.saes.splicing import Splice

__all__ = ["SAE", "FeatureHits", "Splice"]
