"""Which positions carry the picture to the answer.

``study`` is what users call; ``search`` is the section: the order of the steps. ``places`` are the candidates,
``carriers`` what players of a game add, ``game`` that game of positions; ``spliced`` and ``measurements`` are the work,
``state`` and ``sets`` what its tables say so far. ``result`` holds the tables, ``verdict`` the words; ``figures``,
``tables`` and ``cards`` show them.
"""

from __future__ import annotations
