"""The command `hf-warmup`, also `python -m hf_warmup`: preview a schedule, report on runs, write a model card."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ._validation import check_name
from .cli import exit_on_user_error


# Command -> the module that has its `main`, and what it does.
COMMANDS = {
    "preview": ("hf_warmup.preview", "Draw the learning rate of every update before training."),
    "report": ("hf_warmup.report.__main__", "Say what happened in finished runs, and compare them."),
    "card": ("hf_warmup.report.model_card", "Write a model card from recorded runs."),
}


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Run `hf-warmup COMMAND ...`; each command has its own `--help`."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        rows = "\n".join(f"  {name:<9} {about}" for name, (_, about) in COMMANDS.items())
        print(f"usage: hf-warmup COMMAND ...\n\n{rows}\n\nhf-warmup COMMAND --help lists the arguments of a command.")
        return
    check_name("command", command, COMMANDS)
    import_module(COMMANDS[command][0]).main(rest, prog=f"hf-warmup {command}")


if __name__ == "__main__":
    main()
