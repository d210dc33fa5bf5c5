"""Test claims about warmup: what a paper says, what is measured here, and whether the claim holds.

    python -m scripts.reproductions untuned         # effective lengths of the warmups that follow from beta2
    python -m scripts.reproductions variance        # variance of the adaptive learning rate of Adam and RAdam
    python -m scripts.reproductions depth           # gradient norm of the last layer against depth, at initialization
    python -m scripts.reproductions profile         # gradient norm over layers, at initialization and after the warmup
    python -m scripts.reproductions warmup          # which optimizer needs which warmup, at which learning rates
    python -m scripts.reproductions auto            # rewinding until the warmup is long enough, against fixed warmups
    python -m scripts.reproductions ramps           # two published rules for a warmup without a length
    python -m scripts.reproductions rules           # misses and false alarms of the rules on all finished runs
    python -m scripts.reproductions optimizers      # fifteen optimizers on one task, with and without warmup
    python -m scripts.reproductions scratch --data_dir path/to/texts      # Post-LN and Pre-LN on SST-2, from scratch
    python -m scripts.reproductions pretrain --data_dir path/to/texts     # Post-LN and Pre-LN on real text
    python -m scripts.reproductions finetune --data_dir path/to/texts     # their checkpoints on SST-2
    python -m scripts.reproductions pretrained --data_dir path/to/texts   # a published BERT on SST-2, MR and RTE
    python -m scripts.reproductions translation     # Noam's schedule in a Post-LN encoder-decoder

Options: `--quick` (under a minute), `--seeds 0 1 2`, `--output_dir`, `--card`. Training runs are kept in the output
folder and a finished run is not repeated, so the same command continues after an interruption. The output folder also
receives `results.json`, `figure.png` and a model card, `README.md`.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module

import torch
from transformers import HfArgumentParser

from hf_warmup.cli import exit_on_user_error, parse_arguments, words_first
from hf_warmup.model_card import environment

from .card import publish_card, reproduction_card
from .outcome import Outcome, ReproduceArguments


def write_results(outcome: Outcome, args: ReproduceArguments) -> None:
    """Write `results.json` into the output folder."""
    verdicts = [{**vars(verdict), "verdict": verdict.word} for verdict in outcome.verdicts]
    machine = {**environment(), "threads": torch.get_num_threads()}
    results = {"environment": machine, "arguments": vars(args), "verdicts": verdicts, "numbers": outcome.numbers}
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    with exit_on_user_error():
        (args,) = parse_arguments(HfArgumentParser(ReproduceArguments), words_first("what"))
        args.check()
    module = import_module(f".{args.what}", __package__)
    try:
        outcome = module.run(args)
    except (KeyboardInterrupt, BrokenProcessPool):
        print(f"\nstopped: the same command continues with the finished runs in {args.folder}", file=sys.stderr)
        sys.exit(130)
    write_results(outcome, args)
    reproduction_card(module.ABOUT, module.__doc__.strip(), outcome, args).save(args.folder / "README.md")
    print(f"\n{outcome.table}\n")
    print("\n\n".join(map(str, outcome.verdicts)))
    if args.quick:
        print("\nThis was the small version: only verdicts at full size count.")
    print(f"\nWrote results.json, figure.png and the model card README.md to {args.folder}")
    if args.card:
        print(f"Wrote {publish_card(args.folder, f'reproduce_{args.what}')}")


if __name__ == "__main__":
    main()
