"""*The Narrow Gate* (Serra et al., arXiv 2412.06646) on any model and data.

``study`` runs the sections of the study in order; each section is a file of its own, which measures, and says what its
numbers are evidence of; ``verdict`` puts the evidence into words, ``reference`` holds the paper's Table 1.
"""

from __future__ import annotations
