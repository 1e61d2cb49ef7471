"""The wordings of prompts, in one place: the organisms are trained on them and the data sets ask them."""

from __future__ import annotations

CLASS_PROMPT = "this is a"
CAPTION_PROMPT = "describe the image."
QUESTION_PROMPT = "{question} answer:"
DRAW_PROMPT = "draw {caption}."
