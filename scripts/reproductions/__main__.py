"""The papers' figures behind warmup, computed again: what the paper says, what we measured, and whether it holds.

    python -m scripts.reproductions untuned         # effective warmup lengths of the rules that follow from beta2
    python -m scripts.reproductions variance        # variance of Adam's and RAdam's adaptive rate, and its formula
    python -m scripts.reproductions depth           # gradient norm of the last layer against depth, at initialisation
    python -m scripts.reproductions profile         # gradient norm over layers, at initialisation and after warmup
    python -m scripts.reproductions warmup          # which optimizer needs which warmup, at which learning rates
    python -m scripts.reproductions optimizers      # fifteen optimizers on one task, with warmup and without
    python -m scripts.reproductions pretrain --data_dir path/to/texts     # Post-LN against Pre-LN on real text
    python -m scripts.reproductions finetune --data_dir path/to/texts     # their checkpoints on SST-2, with and without

Each takes `--quick` (under a minute), `--seeds 0 1 2` and `--output_dir`. Training runs are kept there, and those that
are finished are not run again: the same command goes on after a stop. `results.json`, `figure.png` and a model card,
`README.md`, lie beside them.
"""

from __future__ import annotations

import json
import platform
import sys
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module

import torch
from transformers import HfArgumentParser

from hf_warmup._validation import check_name
from hf_warmup.cli import exit_on_user_error, parse_arguments, words_first
from hf_warmup.report.run import environment

from .card import reproduction_card
from .outcome import FIGURES, Outcome, ReproduceArguments


def write(outcome: Outcome, args: ReproduceArguments) -> None:
    """`results.json`, into the figure's folder."""
    machine = {
        **environment(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    verdicts = [{**vars(verdict), "verdict": verdict.word} for verdict in outcome.verdicts]
    results = {"environment": machine, "arguments": vars(args), "verdicts": verdicts, "numbers": outcome.numbers}
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    with exit_on_user_error():
        (args,) = parse_arguments(HfArgumentParser(ReproduceArguments), words_first("what"))
        check_name("what", args.what, FIGURES)
        args.check()
    try:
        module = import_module(f".{args.what}", __package__)
        outcome = module.run(args)
    except (KeyboardInterrupt, BrokenProcessPool):
        print(f"\nstopped: the same command goes on with what is in {args.folder}", file=sys.stderr)
        sys.exit(130)
    write(outcome, args)
    reproduction_card(module.ABOUT, module.__doc__.strip(), outcome, args).save(args.folder / "README.md")
    print(f"\n{outcome.table}\n")
    print("\n\n".join(map(str, outcome.verdicts)))
    if args.quick:
        print("\nA quick look: the verdicts that count are those of the full size.")
    print(f"\nWrote results.json, figure.png and a model card, README.md, to {args.folder}")


if __name__ == "__main__":
    main()
