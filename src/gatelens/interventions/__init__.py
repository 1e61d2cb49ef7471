"""What to do to the selected tokens: specs that become plain TransformerLens hook functions."""

from gatelens.interventions.ablate import Ablate, ablate
from gatelens.interventions.base import Edit, Intervention, Reach, Span
from gatelens.interventions.compile import CompiledHooks, as_interventions, compile_hooks
from gatelens.interventions.knockout import Knockout, knockout
from gatelens.interventions.patch import Pair, Pairs, Patch, patch
from gatelens.interventions.sites import SITES, Site, SiteEdit, hook_name
from gatelens.interventions.steer import Steer, steer

__all__ = [
    "SITES",
    "Ablate",
    "CompiledHooks",
    "Edit",
    "Intervention",
    "Knockout",
    "Pair",
    "Pairs",
    "Patch",
    "Reach",
    "Site",
    "SiteEdit",
    "Span",
    "Steer",
    "ablate",
    "as_interventions",
    "compile_hooks",
    "hook_name",
    "knockout",
    "patch",
    "steer",
]
