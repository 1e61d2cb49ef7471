"""*What's in the Image?* (Kaduri et al., arXiv 2411.17491) on any model and data.

``study`` runs the stages; ``configurations`` are its knockouts, ``descriptions`` what is written under them,
``scores`` what of it is right, ``evidence`` and ``verdict`` what it says; ``compressed_context`` and ``questions``
answer from a part of the picture; ``truth`` is what is really in it and ``planted`` what the shipped organisms must
come to.
"""

from __future__ import annotations
