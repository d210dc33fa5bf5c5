"""What the scripts' command lines share: arguments from flags or a file, and one sentence for a user's mistake."""

from __future__ import annotations

import json
import re
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


def _yaml_loader() -> Any:
    """YAML's safe loader that also takes `1e-5` for a number, as Python and JSON do."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def parse_arguments(parser: HfArgumentParser, argv: list[str] | None = None) -> tuple[Any, ...]:
    """From a single `.json`, `.yaml` or `.yml` file, or from flags.

    Raises:
        `ValueError`: For an argument or key that there is not, a missing or malformed file, or a value out of range.
    """
    argv = sys.argv[1:] if argv is None else argv
    suffix = Path(argv[0]).suffix if len(argv) == 1 else ""
    if suffix not in (".json", ".yaml", ".yml"):
        parser.usage = "--help shows every argument"  # instead of two screens in front of argparse's own sentence
        *parsed, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
        if unknown:
            names = [f"--{each.name}" for cls in parser.dataclass_types for each in fields(cls)]
            close = get_close_matches(unknown[0], names, n=1)
            raise ValueError(f"{unknown[0]} is no argument.{f' Did you mean {close[0]}?' if close else ''}")
        return tuple(parsed)
    import yaml

    path = Path(argv[0])
    if not path.is_file():
        raise ValueError(f"{path}: there is no such arguments file.")
    try:
        text = path.read_text(encoding="utf-8")
        arguments = json.loads(text) if suffix == ".json" else yaml.load(text, _yaml_loader())
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid {suffix[1:].upper()} ({' '.join(str(error).split())}).") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{path}: expected one object of argument names and values.")
    return parser.parse_dict(arguments)
