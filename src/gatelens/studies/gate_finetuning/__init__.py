"""Fine-tuning away the gate (Serra et al., arXiv 2412.06646, later version), measured before and after.

``study`` is what users call, with its verdict; ``stages`` are the trainings and the narrow-gate runs around them.
"""

from __future__ import annotations
