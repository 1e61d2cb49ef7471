"""The wordings of prompts, in one place: the organisms are trained on them and the data sets ask them."""

from __future__ import annotations

CLASS_PROMPT = "this is a"
CAPTION_PROMPT = "describe the image."
QUESTION_PROMPT = "{question} answer:"
DRAW_PROMPT = "draw {caption}."

# The papers' wordings (arXiv 2412.06646 and 2411.17491), for the data sets of the papers.
PAPER_CLASS_PROMPT = "This animal is a"
PAPER_CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
PAPER_QUESTION_PROMPT = "{question}\nAnswer the question using a single word or phrase. Answer:"
PAPER_DESCRIBE_PROMPT = "\n describe the image"
