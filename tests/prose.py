"""The project's prose, and proselint on it: ``python tests/prose.py`` prints what it flags (part of ``make lint``).

All checks that proselint enables by default are on, except those in ``OFF``. Our own phrases to avoid are in
``tests/docs/test_language.py``.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
OFF = {
    "typography.symbols": "code and tables write straight quotes, ..., 5 x 4 and (c)",
    "typography.punctuation": "a ! in Python source is a conversion in an f-string",
    "typography.diacritical_marks": "to resume a run is not a résumé",
    "spelling.consistency": "color is matplotlib's and CSS's keyword, colour our word",
    "lexical_illusions": "a table repeats numbers, and a page its title; doubled words are in PHRASES",
}
FENCES = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(`+)[^`\n]+\1")
FILES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*") if p.suffix in {".md", ".rst", ".py"}),
    *sorted(p for p in (ROOT / "src").rglob("*") if p.suffix in {".py", ".html", ".j2", ".js"}),
]
SPOKEN = {
    getattr(tokenize, kind) for kind in ("COMMENT", "STRING", "FSTRING_MIDDLE") if hasattr(tokenize, kind)
}


def prose(path: Path) -> str:
    """The words of a file, line for line: of Python its comments and strings, of Markdown all but code blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return FENCES.sub(lambda block: "\n" * block.group().count("\n"), text)
    lines = [""] * (text.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in SPOKEN:
            for number, line in enumerate(token.string.split("\n"), token.start[0]):
                lines[number - 1] += " " + line
    return "\n".join(lines)


def flagged(files: list[Path]) -> list[str]:
    """What proselint flags, one line each: file, line, check, advice."""
    from proselint.checks import __register__
    from proselint.config import DEFAULT
    from proselint.registry import CheckRegistry
    from proselint.tools import LintFile

    CheckRegistry().register_many(__register__)
    # of the keys that match a check, such as typography.symbols and typography, the first decides
    checks = dict.fromkeys(OFF, False) | {key: on for key, on in DEFAULT["checks"].items() if key not in OFF}
    config = DEFAULT | {"checks": checks}
    lines = []
    for path in files:
        words = INLINE.sub(lambda code: "`" + "_" * (len(code.group()) - 2) + "`", prose(path))
        for one in LintFile(str(path), words).lint(config):
            result = one.check_result
            lines.append(f"{path}:{one.pos[0]}: {result.check_path}: {result.message}")
    return lines


if __name__ == "__main__":
    wrong = flagged(FILES)
    print("\n".join(wrong) or f"proselint: nothing flagged in {len(FILES)} files")
    sys.exit(bool(wrong))
