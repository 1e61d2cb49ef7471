"""What a position can be. Kept apart so that selectors and token maps can both name it."""

from __future__ import annotations

import enum


class Role(enum.IntEnum):
    """The role of one position; every position of a prompt has exactly one.

    Example:
        >>> [gl.Role(int(role)).name for role in inputs.tokens.roles[0, -4:]]
        ['EOI', 'QUERY', 'QUERY', 'QUERY']
    """

    PAD = 0
    SYSTEM = 1  # text before the first image, the BOS token included
    BOI = 2  # literal begin-of-image token
    IMAGE = 3  # an image token, a class token that a vision tower keeps included
    ROW_BREAK = 4  # end of a row of image tokens
    EOI = 5  # literal end-of-image token
    QUERY = 6  # prompt text after the first image
    GENERATED = 7  # any position after the prompt
