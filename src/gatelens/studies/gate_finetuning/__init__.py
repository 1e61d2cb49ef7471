"""Fine-tuning away the gate (Serra et al., arXiv 2412.06646, later version), measured before and after.

``study`` is what users call; ``stages`` are its trainings; ``summary`` puts the narrow-gate runs around them together.
"""

from __future__ import annotations
