"""Where images, questions and masks come from: emoji scenes, easy-vqa, the papers' data, or a user's own folder.

>>> scenes = gl.data.load("emoji-scenes")
>>> scenes.examples("class", limit=2)[0].prompt
'<image>this is a'
"""

from gatelens.data.base import Dataset, Example
from gatelens.data.loading import load
from gatelens.data.pairs import Pair, Pairs

__all__ = ["Dataset", "Example", "Pair", "Pairs", "load"]
