"""What to do to the selected tokens: specs that become plain TransformerLens hook functions.

>>> gl.interventions.SITES[:6]
('resid_pre', 'resid_mid', 'resid_post', 'attn_in', 'attn_out', 'mlp_in')
"""

from gatelens.interventions.ablation import ablate
from gatelens.interventions.base import Intervention, Reach
from gatelens.interventions.dropping import drop
from gatelens.interventions.editing import edit
from gatelens.interventions.hooks import Edit, Span
from gatelens.interventions.knockouts import knockout
from gatelens.interventions.patching import Patch, patch
from gatelens.interventions.rows import Rows
from gatelens.interventions.sites import SITES, Site, hook_name
from gatelens.interventions.steering import steer

__all__ = [
    "SITES",
    "Edit",
    "Intervention",
    "Patch",
    "Reach",
    "Rows",
    "Site",
    "Span",
    "ablate",
    "drop",
    "edit",
    "hook_name",
    "knockout",
    "patch",
    "steer",
]
