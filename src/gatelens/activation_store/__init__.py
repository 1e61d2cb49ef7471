"""Activations of many prompts on disk: who each row is, and what it holds at each site."""

from gatelens.activation_store.collecting import collect
from gatelens.activation_store.prompts import StoredPrompts
from gatelens.activation_store.store import ActivationStore

__all__ = ["ActivationStore", "StoredPrompts", "collect"]
