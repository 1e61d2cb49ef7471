"""``gatelens explore``: a local page to intervene on one prompt and watch the effect.

``state`` is what the page asks for, ``shelf`` the pictures it can name, ``script`` the calls of gatelens that a state
means, ``explorer`` runs them, ``server`` answers the page, and ``page/`` is the page.
"""
