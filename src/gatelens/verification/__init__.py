"""``gatelens verify``: whether a wrapped model is the model that transformers loads, on the checkpoint itself.

``plain`` runs the reference, transformers and torch alone; ``bounds`` says what counts as equal in a dtype;
``bench`` holds both models and the prompts; ``parity``, ``tokens``, ``edits`` and ``traps`` are the checks, ``paper``
the published table; ``verify`` runs them, ``result`` is what is kept, ``text`` and ``page`` show it.
"""
