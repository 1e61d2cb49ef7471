"""``HookedVLM``: all a TransformerLens model can do, with pictures.

``hooked_vlm`` is the class; ``vlm_bridge`` and ``hooked_bridge`` are what it has of TransformerLens. ``loading`` and
``checkpoints`` go from a name to a model and back; ``input_preparation``, ``input_checks`` and ``foreign_inputs`` from
what a caller gives to a batch; ``activation_cache`` is what a run keeps.
"""

from gatelens.model.hooked_vlm import HookedVLM

__all__ = ["HookedVLM"]
