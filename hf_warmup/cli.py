"""What the scripts' command lines share: arguments from flags or a file, and one sentence for a user's mistake."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._validation import closest, short_repr


if TYPE_CHECKING:
    from transformers import HfArgumentParser


# What gloo and NCCL say when the other side of a connection is gone.
_LOST_PEER = (
    "Connection (closed|reset) by peer|Broken pipe|[Tt]imed out waiting|remote process exited|NCCL communicator"
)


RESUME_HINT = "--resume_from_checkpoint auto goes on from the last checkpoint."


@contextmanager
def exit_on_user_error(going_on: str = "") -> Iterator[None]:
    """Turn a mistake in arguments or files into one sentence on stderr and exit code 2, without a traceback.

    So too, with exit code 1, where another process of the run has ended and this one cannot go on, and, with 130 and
    the words of `going_on`, where it was stopped with Ctrl-C.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:  # ImportError: a flag that needs a package
        is_of_a_file = isinstance(error, OSError) and error.filename and error.strerror
        words = f"{error.filename}: {error.strerror}." if is_of_a_file else " ".join(str(error).split())
        print(f"error: {words}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped{going_on and ': '}{going_on}", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        if not re.search(_LOST_PEER, str(error)):
            raise
        last_line = str(error).strip().splitlines()[-1]
        print(
            f"error: Another process of this run has ended or cannot be reached ({last_line}): start all of them again "
            "with --resume_from_checkpoint auto.",
            file=sys.stderr,
        )
        sys.exit(1)


def parse_arguments(
    parser: HfArgumentParser, argv: list[str] | None = None, *, ignore_foreign: bool = False
) -> tuple[Any, ...]:
    """Parse a single `.json`, `.yaml` or `.yml` file, or flags.

    With `ignore_foreign`, unknown flags are ignored with a warning unless they are close to a known one.

    Raises:
        `ValueError`: For an argument or key that there is not, a missing or malformed file, or a value out of range.
    """
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) == 1 and Path(argv[0]).suffix in _FILES:
        argv = _flags_from_file(Path(argv[0]))
    parser.allow_abbrev = False  # a misspelt name is no other name's beginning
    parser.usage = "--help shows every argument"  # instead of two screens in front of argparse's own sentence
    *parsed, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    if ignore_foreign:
        names = [f"--{each.name}" for cls in parser.dataclass_types for each in fields(cls)]
        flags = [each for each in unknown if each.startswith("--")]
        unknown = [each for each in flags if closest(each.partition("=")[0], names, cutoff=0.85)]
        if flags and not unknown:
            print(f"warning: {', '.join(flags)} ignored: they are no training arguments.", file=sys.stderr)
    if unknown:
        flag = unknown[0].partition("=")[0]
        flag = flag if flag.split() == [flag] else repr(flag)
        names = [f"--{each.name}" for cls in parser.dataclass_types for each in fields(cls)]
        raise ValueError(f"{flag} is no argument{_hint(flag, names)}")
    return tuple(parsed)


_FILES = (".json", ".yaml", ".yml")


def _hint(flag: str, names: list[str]) -> str:
    """How the sentence about a `flag` that there is not ends, where the others are `names`."""
    if flag.endswith(_FILES):
        return ": a file of arguments stands alone, without flags beside it."
    if flag == "--overwrite_output_dir":
        return ": transformers has taken it away; without it, too, a run begins anew in the same folder."
    length = next((name for name in names if name.endswith("warmup_steps")), None)
    if flag == "--warmup_ratio" and length:
        return f": use {length} 0.1, below 1 it is a share of the run."
    close = closest(flag, names)
    return f". Did you mean {close}?" if close else "."


def words_first(name: str, argv: list[str] | None = None) -> list[str]:
    """The flags of a script with subcommands: a first word without a flag is the value of `name`.

    Example:

    ```python
    >>> words_first("what", ["depth", "--quick"])
    ['--what', 'depth', '--quick']

    ```
    """
    argv = sys.argv[1:] if argv is None else argv
    return [f"--{name}", *argv] if argv and not argv[0].startswith("-") else argv


def check_minimums(arguments: Any, **minimums: float) -> None:
    """Check that numeric fields of parsed `arguments` are finite and not below their minimum.

    Args:
        arguments (`Any`): An object with the fields, such as a dataclass that [`parse_arguments`] returned.
        **minimums (`float`): Field name to smallest allowed value. `None` is accepted; a list is checked per item.

    Raises:
        `ValueError`: With the name and the value of the first invalid field.

    Example:

    ```python
    >>> from types import SimpleNamespace
    >>> check_minimums(SimpleNamespace(max_steps=0, seeds=[0, 1]), seeds=0, max_steps=1)
    Traceback (most recent call last):
    ValueError: max_steps=0: expected an integer in [1, inf).

    ```
    """
    for name, minimum in minimums.items():
        field_value = getattr(arguments, name)
        for value in field_value if isinstance(field_value, list) else [field_value]:
            if value is not None and not minimum <= value < inf:
                kind = "an integer" if isinstance(value, int) else "a finite number"
                raise ValueError(f"{name}={value}: expected {kind} in [{minimum:g}, inf).")


def check_process_count(num_processes: int) -> None:
    """Refuse to be one of several unrelated runs: the launcher asked for more processes than this one sees.

    That is what comes of `torchrun` with an Accelerate loop on the CPU unless `ACCELERATE_USE_CPU=true`, of
    `accelerate launch --cpu --num_processes 2`, and of `srun` without a launcher.

    Raises:
        `ValueError`: With both numbers and the command that works.
    """
    sizes = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    asked = max((int(os.environ[name]) for name in sizes if os.environ.get(name, "").isdigit()), default=1)
    # Accelerate's launcher for one process leaves this address behind only if several were asked for.
    if asked == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        asked = 2 if "WORLD_SIZE" not in os.environ else asked
    if asked > num_processes:
        raise ValueError(
            f"The launcher asked for {asked if asked > 2 else 'several'} processes and this run sees "
            f"{num_processes}: several on a CPU need ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
            "--num_processes N, as in scripts/accelerate_configs/."
        )


def _flags_from_file(path: Path) -> list[str]:
    """The file's arguments as flags, so that both ways in convert and check alike."""
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: there is no such arguments file.")
    try:
        text = path.read_text(encoding="utf-8")
        arguments = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: bad JSON, bad UTF-8, 13 months
        kind = path.suffix[1:].upper()
        raise ValueError(f"{path}: not valid {kind} ({' '.join(str(error).split())}).") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{path}: expected one object of argument names and values.")
    flags = []
    for name, value in arguments.items():
        try:
            if isinstance(value, list):
                flags += [f"--{name}", *map(_as_text, value)]
            elif value is not None:
                flags.append(f"--{name}={_as_text(value)}")
        except (ValueError, TypeError, RecursionError):  # YAML has dates as keys, lists inside themselves, ...
            raise ValueError(
                f"{path}: {short_repr(name)} has the value {short_repr(value)}: expected what JSON can say."
            ) from None
    return flags


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
