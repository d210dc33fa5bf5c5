"""Post-LN against Pre-LN, with and without warmup, on a task that takes seconds: was the warmup needed?

    python scripts/compare_layer_norm.py                                   # the five default arms, three seeds
    python scripts/compare_layer_norm.py --arms post:gi_adam:none --seeds 0 1 2 3 4
    python scripts/compare_layer_norm.py --arms post:adamw:none --learning_rate 5e-4 --output_dir runs/low_lr

Each arm is `norm_placement:optim:warmup_type`. A small BERT learns to reverse 16 random tokens: masked-LM loss on every
position, a fresh batch each update, the same batches and the same initial values in every arm of a seed. Runs are kept
in `--output_dir`; those that are there already with the same settings are not run again.
"""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_warmup._validation import check_number
from hf_warmup.cli import check_process_count, exit_on_user_error, parse_arguments
from hf_warmup.report import draw_comparison, mean_and_spread, read_run
from hf_warmup.report.page import write_page
from reproductions.kept_runs import run_all
from reproductions.reversal import CHANCE_LOSS, FIRST_SYMBOL, VOCAB_SIZE, run_one, training_arguments


DEFAULT_ARMS = ["post:adamw:none", "post:adamw:linear", "post:adamw:constant", "post:radam:none", "pre:adamw:none"]


@dataclass
class CompareArguments:
    """What to compare."""

    arms: list[str] = field(
        default_factory=lambda: list(DEFAULT_ARMS),
        metadata={"help": "norm_placement:optim:warmup_type, for example post:adamw:linear"},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run of each arm for each."})
    learning_rate: float = field(default=2e-3, metadata={"help": "The full learning rate, constant after the warmup."})
    warmup_steps: int = field(default=100, metadata={"help": "Updates of warmup in the arms that have one."})
    max_steps: int = field(default=300, metadata={"help": "Updates of each run."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers of the small BERT."})
    output_dir: str = field(default="runs/compare_layer_norm", metadata={"help": "Where runs and figures go."})
    num_workers: int = field(default=0, metadata={"help": "Runs at a time; 0 for one on each core."})


def parse_arm(arm: str, args: CompareArguments) -> dict[str, Any]:
    """Settings of an arm, checked by the training arguments before anything runs."""
    parts = arm.split(":")
    if len(parts) != 3 or parts[0] not in ("post", "pre"):
        raise ValueError(f"arms={arm!r}: expected post or pre:optim:warmup_type, such as post:adamw:linear.")
    settings = {
        "norm_placement": parts[0],
        "optim": parts[1],
        "warmup_type": parts[2],
        "warmup_steps": args.warmup_steps,
        "learning_rate": args.learning_rate,
        "max_steps": args.max_steps,
        "num_hidden_layers": args.num_hidden_layers,
    }
    training_arguments({**settings, "seed": 0}, Path(args.output_dir))
    return settings


def plan(args: CompareArguments) -> dict[Path, dict[str, Any]]:
    """Run folder -> settings, for every arm with every seed; wrong arguments are refused here."""
    for name, low in {"max_steps": 1, "num_hidden_layers": 1, "warmup_steps": 0, "num_workers": 0}.items():
        check_number(name, getattr(args, name), low, integer=True)
    for seed in args.seeds:
        check_number("seeds", seed, integer=True)
    arms = {arm: parse_arm(arm, args) for arm in args.arms}
    return {
        Path(args.output_dir) / f"{arm.replace(':', '-')}-seed{seed}": {**settings, "seed": seed}
        for seed in args.seeds
        for arm, settings in arms.items()
    }


def arm_name(result: dict[str, Any]) -> str:
    return ":".join(result[key] for key in ("norm_placement", "optim", "warmup_type"))


def summarize(results: list[dict[str, Any]]) -> tuple[str, str]:
    """The table and the conclusion in words."""
    lines = [f"{'arm':<24}{'solved':>8}{'final loss':>18}{'accuracy':>18}{'updates to loss 0.5':>22}"]
    verdicts = {"failed on every seed": [], "solved the task on every seed": [], "solved it on some seeds": []}
    for arm in dict.fromkeys(map(arm_name, results)):
        runs = [result for result in results if arm_name(result) == arm]
        reached = [run["steps_to_loss_0.5"] for run in runs if run["steps_to_loss_0.5"] is not None]
        lines.append(
            f"{arm:<24}{f'{len(reached)}/{len(runs)}':>8}"
            f"{mean_and_spread([run['final_loss'] for run in runs]):>18}"
            f"{mean_and_spread([run['accuracy'] for run in runs]):>18}"
            f"{mean_and_spread(reached, digits=0) if reached else 'never':>22}"
        )
        verdict = ("solved it on some seeds", "failed on every seed", "solved the task on every seed")[
            1 if not reached else 2 if len(reached) == len(runs) else 0
        ]
        verdicts[verdict].append(arm)
    words = [f"{', '.join(arms)} {verdict}." for verdict, arms in verdicts.items() if arms]
    words.append(f"Chance is loss {CHANCE_LOSS:.3f}, accuracy {1 / (VOCAB_SIZE - FIRST_SYMBOL):.3f}.")
    return "\n".join(lines), " ".join(words)


def main() -> None:
    with exit_on_user_error():
        (args,) = parse_arguments(HfArgumentParser(CompareArguments))
        check_process_count(1)
        jobs = plan(args)
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    try:
        table, conclusion = summarize(run_all(run_one, jobs, Path(args.output_dir), args.num_workers))
    except (KeyboardInterrupt, BrokenProcessPool):
        print(f"\nstopped: the same command goes on with what is in {args.output_dir}", file=sys.stderr)
        sys.exit(130)
    runs = [read_run(folder) for folder in jobs]
    written = [*draw_comparison(runs, args.output_dir), write_page(runs, Path(args.output_dir) / "report.html")]
    print(f"\n{table}\n\n{conclusion}\n\nWrote results.json, the runs and their recordings to {args.output_dir}:")
    print("\n".join(f"  {path}" for path in written))


if __name__ == "__main__":
    main()
