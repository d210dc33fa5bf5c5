"""Helpers for command lines: arguments from flags and files, readable help, and one clear error for a mistake."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._logging import warn_once
from ._validation import check_number, closest, short_repr


if TYPE_CHECKING:
    from transformers import HfArgumentParser

logger = logging.getLogger(__name__)

RESUME_HINT = "--resume_from_checkpoint auto resumes from the latest complete checkpoint."
ARGUMENT_FILES = (".json", ".yaml", ".yml")

# Help of the arguments that hf_warmup adds. It is kept here so that `--help` does not have to import transformers.
WARMUP_FLAGS = {
    "optim": "Optimizer: radam, adam_warmup, gi_adam, adam, adamw, nadam, adadelta, adagrad, rmsprop, sgd, sgdm, nag, "
    "an import path such as my_optim:MyAdam, or a name of transformers.",
    "optim_args": "Options of the optimizer: key=value,key=value.",
    "lr_scheduler_type": "Decay: noam, exponential, power, sine, inverse_time, an import path such as "
    "my_curves:cooldown, or a name of transformers.",
    "lr_scheduler_kwargs": "Keywords of the decay and the warmup, as JSON: '{\"d_model\": 768}'.",
    "warmup_type": "Warmup before the decay: linear, constant, exponential, cosine, untuned_linear, "
    "untuned_exponential, radam, none, auto (found by rewinding), or an import path. By default the warmup of "
    "lr_scheduler_type.",
    "warmup_steps": "Length of the warmup in updates, or, below 1, as a share of the run.",
    "warmup_epochs": "Length of the warmup in epochs, instead of --warmup_steps.",
    "learning_rate_mapping": "Learning rates by parameter name, as JSON: '{\"regular expression\": 1e-5}'.",
    "layerwise_lr_decay": "Multiply the learning rate by this factor for each block below the head, such as 0.9.",
    "grad_norm_steps": "Record gradient norms per layer every so many updates; 0 turns the recording off.",
    "grad_norm_group_by": "Parameters of one recorded norm: layer, module, parameter, attention or mlp.",
    "record": "What to record for each layer: gradients, or gradients updates (norms of the updates too).",
    "guard": "What to do if the run goes wrong: off, warn, stop or rewind.",
    "stop_on_signal": "Save a complete checkpoint and stop on SIGTERM or SIGUSR1.",
    "guard_max_rewinds": "Rewinds after which --guard rewind stops the run.",
}

# Flags of older versions and other scripts: the flags that replace them, or why there is none.
_RENAMED_FLAGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--epochs", "--num_epochs"), ("--num_train_epochs",)),
    "--evaluation_strategy": ("--eval_strategy",),
    **dict.fromkeys(("--batch_size", "--train_batch_size"), ("--per_device_train_batch_size",)),
    **dict.fromkeys(("--grad_clip", "--gradient_clipping", "--clip_grad_norm"), ("--max_grad_norm",)),
    **dict.fromkeys(("--max_train_steps", "--total_steps", "--num_training_steps"), ("--max_steps",)),
    "--lr": ("--learning_rate",),
    "--lr_decay": ("--lr_scheduler_type",),
    "--max_steps": ("--max_train_steps",),
    "--model": ("--model_name_or_path",),
    **dict.fromkeys(("--warmup", "--warmup_proportion", "--warmup_ratio"), ("--warmup_steps", "--num_warmup_steps")),
    "--wd": ("--weight_decay",),
}
_REMOVED_FLAGS = {
    "--overwrite_output_dir": "transformers removed it; without --resume_from_checkpoint a run starts from scratch",
}

# What gloo and NCCL report if another process of the run has ended.
_LOST_PEER = (
    "Connection (closed|reset) by peer|Broken pipe|[Tt]imed out waiting|remote process exited|NCCL communicator"
)


@contextmanager
def exit_on_user_error(resume_hint: str = "") -> Iterator[None]:
    """Print an error in arguments or files as one line and exit with code 2, without a traceback.

    Exit with code 1 if another process of the run has ended, with code 130 on Ctrl-C, and silently with code 141 if the
    reader of the output, such as `head`, has closed it.

    Args:
        resume_hint (`str`, *optional*): How to continue; printed on Ctrl-C.

    Example:

    ```python
    >>> import contextlib, sys
    >>> with contextlib.redirect_stderr(sys.stdout), exit_on_user_error():
    ...     raise ValueError("max_steps=0: expected an integer in [1, inf).")
    Traceback (most recent call last):
    SystemExit: 2

    ```
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, because an error while Python exits cannot be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, ImportError) as error:  # ImportError: an argument that needs a missing package
        names_a_file = isinstance(error, OSError) and error.filename and error.strerror
        text = f"{error.filename}: {error.strerror}." if names_a_file else " ".join(str(error).split())  # type: ignore[union-attr]
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped{resume_hint and ': '}{resume_hint}", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        if not re.search(_LOST_PEER, str(error)):
            raise
        last_line = str(error).strip().splitlines()[-1]
        print(
            f"error: Another process of this run has ended or cannot be reached ({last_line}). Start all processes "
            "again with --resume_from_checkpoint auto.",
            file=sys.stderr,
        )
        sys.exit(1)


def parse_arguments(
    parser: HfArgumentParser, argv: Sequence[str] | None = None, *, ignore_foreign: bool = False
) -> tuple[Any, ...]:
    """Parse flags, or a `.json`, `.yaml` or `.yml` file followed by flags; the flags take precedence.

    `--help` lists the arguments of the script and of hf_warmup, `--help-all` those of transformers as well.

    Args:
        parser (`HfArgumentParser`): The parser of the dataclasses to fill. Its usage line is replaced.
        argv (`Sequence[str]`, *optional*): The command line, by default `sys.argv[1:]`.
        ignore_foreign (`bool`, defaults to `False`): Ignore unknown flags with a warning, unless one of them is close
            to a known flag.

    Returns:
        `tuple`: One instance of each dataclass of the parser.

    Raises:
        `ValueError`: For an unknown flag, a file that is missing or malformed, or a value out of range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    known = {each.name: each for cls in parser.dataclass_types for each in fields(cls)}
    if argv and Path(argv[0]).suffix in ARGUMENT_FILES:
        argv = _flags_from_file(Path(argv[0]), known) + argv[1:]
    parser.allow_abbrev = False  # a misspelled flag is not the beginning of another one
    parser.usage = f"{parser.prog} [FILE.yaml] [--FLAG VALUE ...]  (--help lists the flags)"
    if {"-h", "--help", "--help-all"} & set(argv):
        print(format_help(parser.prog, parser.description, _help_groups(parser, "--help-all" in argv)))
        sys.exit(0)
    results: Any = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    *parsed, unknown = results
    flags = [f"--{name}" for name in known]
    if ignore_foreign:
        foreign = [each for each in unknown if each.startswith("--")]
        unknown = [each for each in foreign if closest(each.partition("=")[0], flags, cutoff=0.85)]
        if foreign and not unknown:
            print(f"warning: ignoring {', '.join(foreign)}, which are not training arguments.", file=sys.stderr)
    if unknown:
        raise ValueError(_unknown_flag(unknown[0].partition("=")[0], flags))
    return tuple(parsed)


def _unknown_flag(flag: str, known: Sequence[str]) -> str:
    """Return the error for a flag that no dataclass has."""
    unknown = f"{flag} is not an argument"
    if flag.endswith(ARGUMENT_FILES):
        return f"{unknown}. A file of arguments comes first, before all flags."
    if flag in _REMOVED_FLAGS:
        return f"{unknown}: {_REMOVED_FLAGS[flag]}."
    renamed = next((name for name in _RENAMED_FLAGS.get(flag, ()) if name in known), None)
    if renamed and renamed.endswith("warmup_steps"):
        return f"{unknown}. Use {renamed}: a value below 1 is a share of the run."
    # Without the dashes, which all flags share, and without fields that are not meant as flags, such as `_n_gpu`.
    names = {name.lstrip("-"): name for name in known if not name.startswith("--_")}
    close = renamed or names.get(closest(flag.lstrip("-"), names) or "")
    return f"{unknown}. Did you mean {close}?" if close else f"{unknown}."


def format_help(prog: str, description: str | None, groups: Mapping[str, Mapping[str, str]]) -> str:
    """Return the help of a command.

    Args:
        prog (`str`): The command, as it is typed.
        description (`str`, *optional*): What it does.
        groups (`Mapping[str, Mapping[str, str]]`): For each title the flags, without dashes, with their help.

    Example:

    ```python
    >>> print(format_help("draw", "Draw a curve.", {"output": {"width": "Columns (default: 72)."}}))
    usage: draw [FILE.yaml] [--FLAG VALUE ...]
    <BLANKLINE>
    Draw a curve.
    <BLANKLINE>
    output:
      --width                   Columns (default: 72).

    ```
    """
    lines = [f"usage: {prog} [FILE.yaml] [--FLAG VALUE ...]"]
    lines += ["", description.strip()] if description else []
    for title, flags in groups.items():
        lines += ["", f"{title}:"]
        for name, text in flags.items():
            lines.append(
                textwrap.fill(text, 100, initial_indent=f"  --{name:<22}  ", subsequent_indent=" " * 28)
                if text
                else f"  --{name}"
            )
    return "\n".join(lines)


def _help_groups(parser: HfArgumentParser, everything: bool) -> dict[str, dict[str, str]]:
    """Return the flags by the class that declares them, transformers' last and only with `everything`."""
    groups: dict[type, dict[str, str]] = {}
    for cls in parser.dataclass_types:
        for each in fields(cls):
            owner = next(base for base in cls.__mro__ if each.name in get_annotations(base))
            groups.setdefault(owner, {})[each.name] = describe_field(each)
    titled, hidden = dict[str, dict[str, str]](), dict[str, str]()
    for owner, flags in groups.items():
        if owner.__module__.startswith("transformers."):
            hidden |= flags
        else:
            title = (owner.__doc__ or owner.__name__).partition("\n")[0].rstrip(".")
            titled[title] = {name: flags[name] for name in get_annotations(owner) if name in flags}
    if hidden and everything:
        titled["Arguments of transformers"] = hidden
    elif hidden:
        titled["More"] = {"help-all": "List all arguments of transformers as well."}
    return titled


def default_of(each: Field[Any]) -> Any:
    """Return the default of a dataclass field, or `dataclasses.MISSING`."""
    return each.default if each.default_factory is MISSING else each.default_factory()


def describe_field(each: Field[Any]) -> str:
    """Return the help of a dataclass field with its default."""
    text, default = str(each.metadata.get("help", "")).replace("%%", "%"), default_of(each)
    if default is MISSING:
        return f"{text} (required)".strip()
    return (
        text
        if default in (None, "", [], {}) or default is False
        else f"{text} (default: {getattr(default, 'value', default)})".strip()
    )


def read_mapping(name: str, value: dict[str, Any] | str | None, example: str) -> dict[str, Any]:
    """Return an argument that is a dictionary, or JSON text of one, with text such as "1e-6" as numbers.

    Raises:
        `ValueError`: If it is something else.

    Example:

    ```python
    >>> read_mapping("lr_scheduler_kwargs", '{"min_lr": "1e-6"}', example='{"d_model": 768}')
    {'min_lr': 1e-06}

    ```
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{name}={short_repr(value)}: expected JSON such as {example} ({error}).") from None
    if not isinstance(value, (dict, type(None))):
        raise ValueError(f"{name}={short_repr(value)}: expected a dictionary such as {example}.")
    return {key: _as_number(each) for key, each in (value or {}).items()}


def _as_number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def words_first(name: str, argv: Sequence[str] | None = None) -> list[str]:
    """Return a command line in which a first word without dashes is the value of the flag `name`.

    Example:

    ```python
    >>> words_first("what", ["depth", "--quick"])
    ['--what', 'depth', '--quick']

    ```
    """
    argv = list(sys.argv[1:] if argv is None else argv)
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
        value = getattr(arguments, name)
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                check_number(name, each, minimum, integer=isinstance(each, int))


def check_process_count(num_processes: int) -> None:
    """Check that the run has as many processes as its launcher was asked for.

    Otherwise each process would train alone. That happens with `torchrun` and an Accelerate loop on the CPU unless
    `ACCELERATE_USE_CPU=true`, with `accelerate launch --cpu --num_processes 2`, and with `srun` without a launcher.

    Args:
        num_processes (`int`): The number of processes that the run sees.

    Raises:
        `ValueError`: If the launcher was asked for more.
    """
    sizes = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    asked = max((int(os.environ[name]) for name in sizes if os.environ.get(name, "").isdigit()), default=1)
    # With one process, Accelerate's launcher leaves this address behind only if several processes were asked for.
    if asked == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        asked = 2 if "WORLD_SIZE" not in os.environ else asked
    if asked > num_processes:
        raise ValueError(
            f"The launcher was asked for {asked if asked > 2 else 'several'} processes, but this run sees "
            f"{num_processes}. On CPUs use ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N, as "
            "in scripts/accelerate_configs/."
        )


def warn_of_process_count(num_processes: int) -> None:
    """Log the error of [`check_process_count`] as a warning: a user's own script may be meant to run like that."""
    try:
        check_process_count(num_processes)
    except ValueError as error:
        warn_once(logger, str(error))


def _flags_from_file(path: Path, known: Mapping[str, Field[Any]]) -> list[str]:
    """Return the arguments of a file as flags, so that both are converted and checked alike."""
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: the arguments file does not exist.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        arguments = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:  # ValueError: malformed JSON or UTF-8
        raise ValueError(f"{path}: not valid {path.suffix[1:].upper()} ({' '.join(str(error).split())}).") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{path}: expected one object of argument names and values.")
    flags: list[str] = []
    for key, value in arguments.items():
        name = str(key).replace("-", "_")
        if isinstance(value, dict) and name not in known:
            raise ValueError(f"{path}: {key!r} is a section. Expected the arguments without sections.")
        kind = str(known[name].type) if name in known else ""
        if isinstance(value, list) and ("list" in kind or len(value) == 1):
            flags += [f"--{name}", *map(_as_text, value)]
        elif value is False and "bool" not in kind:  # YAML reads `no` as false
            flags.append(f"--{name}=no")
        elif value is not None:
            flags.append(f"--{name}={_as_text(value)}")
    return flags


def _as_text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, (dict, list)) else str(value)
