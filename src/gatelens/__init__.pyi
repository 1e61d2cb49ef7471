# The public face: every name once. Type checkers and editors read this file, and __init__.py does at run time.
from gatelens import data as data
from gatelens import engine as engine
from gatelens import errors as errors
from gatelens import families as families
from gatelens import interventions as interventions
from gatelens import measures as measures
from gatelens import organisms as organisms
from gatelens import studies as studies
from gatelens import views as views
from gatelens.activation_cache import ActivationCache as ActivationCache
from gatelens.engine import Generation as Generation
from gatelens.engine import explain as explain
from gatelens.engine import sweep as sweep
from gatelens.families import Family as Family
from gatelens.families import FixedGrid as FixedGrid
from gatelens.families import Geometry as Geometry
from gatelens.families import Layout as Layout
from gatelens.inputs import VLMInputs as VLMInputs
from gatelens.interventions import ablate as ablate
from gatelens.interventions import edit as edit
from gatelens.interventions import knockout as knockout
from gatelens.interventions import patch as patch
from gatelens.interventions import steer as steer
from gatelens.interventions.compile import hooks as hooks
from gatelens.measures import metrics as metrics
from gatelens.model import HookedVLM as HookedVLM
from gatelens.readouts import Attribution as Attribution
from gatelens.readouts import LabelledTensor as LabelledTensor
from gatelens.readouts import LogitLens as LogitLens
from gatelens.readouts import attribute as attribute
from gatelens.readouts import logit_lens as logit_lens
from gatelens.runs import Run as Run
from gatelens.tokens import Role as Role
from gatelens.tokens import Selection as Selection
from gatelens.tokens import TokenMap as TokenMap

__version__: str
