"""Check docs, docstrings, comments and messages for words that the project replaces by the field's own.

    python scripts/check_words.py                 # every tracked Markdown and Python file
    python scripts/check_words.py README.md       # some files

The list is `.vale/hf_warmup/Words.yml`, in the format of the vale linter, which can be used instead.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import yaml


ROOT = Path(__file__).resolve().parents[1]
WORDS = ROOT / ".vale" / "hf_warmup" / "Words.yml"
# Strings, comments, and (from Python 3.12 on) the literal parts of f-strings.
PROSE_TOKENS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
CHECKED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "hf_warmup", "model_cards", "scripts", "tests")


def find_words(text: str, swap: dict[str, str]) -> list[tuple[int, str, str]]:
    """Return line number, word found and replacement for each match of a pattern of `swap` in `text`.

    A match may span a line break. Code in backticks is not prose and is passed over.

    ```python
    >>> find_words("We\\nutilise `utilise`.", {"utilise": "use"})
    [(2, 'utilise', 'use')]

    ```
    """
    prose = re.sub(r"`[^`\n]*`", lambda code: " " * len(code[0]), text)
    found = []
    for pattern, replacement in swap.items():
        spaced = pattern.replace(" ", r"\s+(?:#\s+)?")
        for match in re.finditer(rf"\b(?:{spaced})\b", prose, re.IGNORECASE):
            found.append((prose.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), replacement))
    return sorted(found)


def prose_of_python(source: str) -> str:
    """Return `source` with everything but comments and strings replaced by spaces, line for line."""
    kept = [[" "] * len(line) for line in source.splitlines(keepends=True)]
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in PROSE_TOKENS:
            continue
        (first, start), (last, end) = token.start, token.end
        for row in range(first - 1, last):
            left, right = start if row == first - 1 else 0, end if row == last - 1 else len(lines[row])
            kept[row][left:right] = lines[row][left:right]
    return "\n".join("".join(line).rstrip("\n") for line in kept)


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *CHECKED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [ROOT / name for name in listed if name.endswith((".md", ".py", ".jinja")) and (ROOT / name).exists()]


def main(argv: list[str]) -> int:
    swap = yaml.safe_load(WORDS.read_text(encoding="utf-8"))["swap"]
    files = [Path(name).resolve() for name in argv] or tracked_files()
    count = 0
    for path in files:
        if path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8")
        for line, word, replacement in find_words(prose_of_python(text) if path.suffix == ".py" else text, swap):
            print(f"{path.relative_to(ROOT)}:{line}: '{word}': write '{replacement}'")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
