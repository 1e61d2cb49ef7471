"""What the words on the page of “What's in the image?” mean; one paragraph each."""

from __future__ import annotations

METHOD = {
    "knockout mask": (
        "The attention scores of the cut tokens are −∞ before the softmax, so that the row renormalises "
        "(the paper's code)."
    ),
    "knockout zero": "The attention to the cut tokens is set to 0 after the softmax, and the row is not renormalised.",
    "query tokens": (
        "All tokens of the prompt that are no image token, as in the paper: the system text and the "
        "markers around the image are among them, so an end-of-image token is a query token."
    ),
    "image → generated": (
        "X → Y: rows Y cannot read the image tokens, in any head, also while generating. Generated are "
        "the rows at generated positions; both means query and generated rows."
    ),
    "first token sees": (
        "The first new token is written by the prompt's last row. As in the paper's code, that row still "
        "sees the image when image → generated is cut."
    ),
    "first token blocked": (
        "The first new token is written by the prompt's last row. It loses the image as well when image → "
        "generated is cut (the paper's code lets it see)."
    ),
    "from layer l on": "The path is cut in layer l and all later ones; 0 is every layer.",
    "window": (
        "Of what the image → both curve changes from start to start, the quarter of the layers that holds "
        "most, found and not set by hand; the path is then cut only there, and everywhere else."
    ),
    "object F1": (
        "Objects of the description under knockout against those of the unmodified one: 2 · common ÷ "
        "(named in one + named in the other), mean over pictures whose unmodified description names an "
        "object. An object named twice counts once."
    ),
    "object precision": (
        "The share of the objects named that the unmodified description names too; pictures with none "
        "named left out."
    ),
    "object recall": "The share of the unmodified description's objects that are still named.",
    "object F1 against truth": "The same F1 against the objects that are in the picture.",
    "judge offline": "Objects are found by a list of names and synonyms, singular or plural, the longest phrase first.",
    "judge": (
        "Objects are listed and matched by the judge {judge}; its prompts and replies are kept with the run."
    ),
    "localisation": (
        "Attention of the rows that write an object's word on the image tokens, mean over heads, painted "
        "on the tokens' own places in the picture. A hit is the share of the maximum's pixels that lie in "
        "the object's mask; near counts pixels around it, as far as the paper's 40 in a picture of 640. "
        "Chance is what a map without any preference scores."
    ),
    "trade_off": (
        "The description prompt runs once; each layer keeps the prompt without the image and the K % of "
        "image tokens that the description attended to most, at their original positions; questions are "
        "answered from what is kept. Query only keeps no image token."
    ),
    "mme": (
        "ACC: questions answered rightly; ACC+: pictures with both questions answered rightly; means over the "
        "subsets asked. Chance is 50 and 25."
    ),
    "interval": (
        "Percentile bootstrap over pictures (for words: over words), 95 %. It has no width where all "
        "score alike."
    ),
    "verdict": (
        "Of the F1 between the floor (image → both cut in all layers, at least that of another picture's "
        "description) and 1, the share a knockout keeps. Stored in the query tokens: with image → query "
        "cut less than half is kept, and with image → generated cut at least 25 points more, intervals "
        "considered; read directly: the reverse. It needs 20 descriptions that name an object."
    ),
}
