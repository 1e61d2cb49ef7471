"""Prose uses the field's words: phrases that a native reader stumbles over are listed here with what to write.

Spelling is codespell's, in ``make lint``.
"""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = {
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
    r"so many (processes|actors)": "number of processes",
    r"behind the (norm|softmax|layer|block|gate|picture|image|prompt|token)s?": "after, before",
    r"is no (class|model) of transformers": "is not a transformers class",
    r"(answered|answers|reads?) rightly": "correctly",
    r"(one|two|number|row|line|nats) a (prompt|row|head|layer|position|token|point|picture|pair|question)": "per",
}
STUMBLES = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES), re.IGNORECASE)
FENCES = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
FILES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*") if p.suffix in {".md", ".rst", ".py"}),
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "src").rglob("*.html")),
]


def prose(path: Path) -> str:
    """The words of a file, line for line: of Python its comments and strings, of Markdown all but code blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return FENCES.sub(lambda block: "\n" * block.group().count("\n"), text)
    lines = [""] * (text.count("\n") + 2)
    spoken = (
        {tokenize.COMMENT, tokenize.STRING, tokenize.FSTRING_MIDDLE}
        if hasattr(tokenize, "FSTRING_MIDDLE")
        else {
            tokenize.COMMENT,
            tokenize.STRING,
        }
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in spoken:
            for number, line in enumerate(token.string.split("\n"), token.start[0]):
                lines[number - 1] += " " + line
    return "\n".join(lines)


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
