"""Which positions carry the picture to the answer: ``finder`` is what users call, ``search`` its steps, ``places`` the
candidates, ``verdict`` the words."""

from __future__ import annotations
