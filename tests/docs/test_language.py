"""Prose uses the field's words: phrases that a native reader stumbles over are listed here with what to write.

Spelling is codespell's and general style proselint's, both in ``make lint``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prose import FILES, ROOT, flagged, prose

PHRASES = {
    r"(?P<twice>the|an?|of|to|is|are|and|in|it|for|with) (?P=twice)": "the word once",
    r"anew": "again; rebuilt, recomputed, retrained",
    r"(rightly|wrongly)": "correctly, incorrectly",
    r"superfluous": "extra, unnecessary",
    r"mend(s|ed|ing)?": "fix",
    r"nobody looks": "say what happens instead",
    r"as (it is|they are) meant": "as intended",
    r"what is so": "what is true",
    r"by the book": "strictly",
    r"lean(s)? on": "use",
    r"(a run|runs) of before": "an older run",
    r"goes on where": "resumes where",
    r"so many": "this many, the number of",
    r"of one's own": "your own",
    r"in another way": "differently",
    r"(goes|go) on (there|from there)": "resumes, continues",
    r"(stand|lie)s? beside": "is next to, is shown with",
    r"nobody": "no one, nothing",
    r"otherwise than": "differently from",
    r"leads? out of": "is outside",
    r"the least and the most": "minimum and maximum",
    r"the way back": "the backward pass, the inverse",
    r"is none of the": "is not one of the",
    r"(turns?|turned) (most|few|more|little|half) (of )?(the )?answers": "changes, flips",
    r"beside (ids|input_ids|the (settings|options|model|stream|logits|full))": "besides, next to",
    r"behind the (norm|softmax|layer|block|gate|picture|image|prompt|token)s?": "after, before",
    r"is no (class|model) of transformers": "is not a transformers class",
    r"(answered|answers|reads?) rightly": "correctly",
    r"(one|two|number|row|line|nats) a (prompt|row|head|layer|position|token|point|picture|pair|question)": "per",
}
STUMBLES = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES), re.IGNORECASE)


def stumbles(text: str) -> list[str]:
    """The flagged phrases of a text, each with its line."""
    return [
        f"{text.count(chr(10), 0, found.start()) + 1}: {found.group()}" for found in STUMBLES.finditer(text)
    ]


def test_prose_has_no_phrase_a_native_reader_stumbles_over() -> None:
    wrong = [f"{path.relative_to(ROOT)}:{one}" for path in FILES for one in stumbles(prose(path))]
    assert not wrong, "\n".join(["see PHRASES for what to write:", *wrong])


@pytest.mark.parametrize("suffix", [".md", ".py"])
def test_a_phrase_is_found_in_prose_and_not_in_code(suffix: str, tmp_path: Path) -> None:
    words = {
        ".md": "One.\n```python\nanew = 1\n```\nMade anew.\n",
        ".py": 'anew = 1\n"""Made\nagain."""\n\n# made anew\n',
    }
    file = tmp_path / f"page{suffix}"
    file.write_text(words[suffix])
    assert stumbles(prose(file)) == ["5: anew"]


def test_proselint_flags_prose_and_not_code(tmp_path: Path) -> None:
    pytest.importorskip("proselint")
    page = tmp_path / "page.md"
    page.write_text("`very unique`\n```python\nvery_unique = 'very unique'\n```\nA most unique page.\n")
    (line,) = flagged([page])
    assert line.startswith(f"{page}:5: uncomparables")
