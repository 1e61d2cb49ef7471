"""*What's in the Image?* (Kaduri et al., arXiv 2411.17491) on any model and data.

``study`` says what is asked and runs its sections: ``descriptions``, ``knockouts`` and ``compressed_context``.
``configurations`` are the knockouts, ``scores`` what of a description is right, ``words`` where each of its words
looked, ``answers`` and ``questions`` belong to the compressed context, ``pictures`` is what is described and really in
it, ``planted`` what the shipped organisms must come to.
"""

from __future__ import annotations
