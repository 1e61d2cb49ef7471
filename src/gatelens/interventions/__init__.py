"""What to do to the selected tokens: specs that become plain TransformerLens hook functions.

>>> gl.interventions.SITES[:6]
('resid_pre', 'resid_mid', 'resid_post', 'attn_in', 'attn_out', 'mlp_in')
"""

from gatelens.interventions.ablation import Ablate, ablate
from gatelens.interventions.base import Intervention, Reach
from gatelens.interventions.compile import as_interventions, compile_hooks
from gatelens.interventions.dropping import Drop, drop
from gatelens.interventions.editing import FunctionEdit, HookPairEdit, edit
from gatelens.interventions.hooks import CompiledHooks, Edit, Span
from gatelens.interventions.knockouts import Knockout, knockout
from gatelens.interventions.patching import Patch, PatchPair, PatchPairs, patch
from gatelens.interventions.rows import Rows
from gatelens.interventions.sites import SITES, Site, SiteEdit, hook_name
from gatelens.interventions.steering import Steer, steer

__all__ = [
    "SITES",
    "Ablate",
    "CompiledHooks",
    "Drop",
    "Edit",
    "FunctionEdit",
    "HookPairEdit",
    "Intervention",
    "Knockout",
    "Patch",
    "PatchPair",
    "PatchPairs",
    "Reach",
    "Rows",
    "Site",
    "SiteEdit",
    "Span",
    "Steer",
    "ablate",
    "as_interventions",
    "compile_hooks",
    "drop",
    "edit",
    "hook_name",
    "knockout",
    "patch",
    "steer",
]
