"""What the scripts' command lines share: arguments from flags or a file, and one sentence for a user's mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import HfArgumentParser


@contextmanager
def one_sentence_for_mistakes() -> Iterator[None]:
    """Turn a mistake in arguments or files into one sentence on stderr and exit code 2, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse_arguments(parser: HfArgumentParser, argv: list[str] | None = None) -> tuple[Any, ...]:
    """From a single `.json`, `.yaml` or `.yml` file, or from flags.

    Raises:
        `ValueError`: For an argument or key that there is not, a missing or malformed file, or a value out of range.
    """
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) == 1 and Path(argv[0]).suffix in (".json", ".yaml", ".yml"):
        argv = _flags_from_file(Path(argv[0]))
    parser.allow_abbrev = False  # a misspelt name is no other name's beginning
    parser.usage = "--help shows every argument"  # instead of two screens in front of argparse's own sentence
    *parsed, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    if unknown:
        flag = unknown[0].partition("=")[0]
        names = [f"--{each.name}" for cls in parser.dataclass_types for each in fields(cls)]
        close = get_close_matches(flag, names, n=1)
        hint = " It is a share of --warmup_steps now." if flag == "--warmup_ratio" else ""
        raise ValueError(f"{flag} is no argument.{hint or (f' Did you mean {close[0]}?' if close else '')}")
    return tuple(parsed)


def _flags_from_file(path: Path) -> list[str]:
    """The file's arguments as flags, so that both ways in convert and check alike."""
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: there is no such arguments file.")
    try:
        text = path.read_text(encoding="utf-8")
        arguments = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        kind = path.suffix[1:].upper()
        raise ValueError(f"{path}: not valid {kind} ({' '.join(str(error).split())}).") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{path}: expected one object of argument names and values.")
    flags = []
    for name, value in arguments.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
