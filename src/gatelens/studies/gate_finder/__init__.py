"""Which positions carry the picture to the answer.

``study`` is what users call; ``search`` is the section: the order of the steps and what is read off their tables.
``places`` are the candidates, ``measurements`` what is done to them, ``result`` the tables, ``verdict`` the words;
``figures``, ``tables`` and ``cards`` show them.
"""

from __future__ import annotations
