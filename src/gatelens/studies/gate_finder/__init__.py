"""Which positions carry the picture to the answer.

``finder`` is what users call, ``result`` what they get, ``search`` the order of the steps, ``setup`` and ``places``
what is searched; ``attention``, ``overlap``, ``knockouts``, ``patching`` and ``sets`` are the steps, ``rows`` their
table, ``verdict`` the words.
"""

from __future__ import annotations
