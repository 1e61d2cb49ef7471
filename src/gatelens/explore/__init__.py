"""``gatelens explore``: a local page on which one prompt is changed and watched.

``state`` is what the page asks for, ``shelf`` the pictures it can name, ``script`` the calls of gatelens that a state
means, ``explorer`` runs them, ``server`` answers the page, and ``page/`` is the page.
"""
