"""Masked-LM pretraining on real text, Post-LN with warmup against Pre-LN without, and both fine-tuned after it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from hf_warmup.report import mean_and_spread
from hf_warmup.report.figures import COLORS, blank_axes, blank_figure

from .outcome import Outcome, ReproduceArguments, Verdict, table_of
from .texts import find_texts
from .training import finetune_one, pretrain_one, remembered


if TYPE_CHECKING:
    from matplotlib.figure import Figure


XIONG = "Xiong et al. 2020, arXiv:2002.04745, section 4: 700k updates of Post-LN are 500k of Pre-LN"
ARMS = {"post": "linear", "pre": "none"}  # placement -> warmup
NAMES = {"post": "Post-LN, warmup", "pre": "Pre-LN, no warmup"}
TASKS = {"SST-2": 400, "RTE": 60}  # updates of fine-tuning
MAJORITY = {"SST-2": 444 / 872, "RTE": 146 / 277}  # accuracy of always answering the development set's larger class
LEARNED = 0.02  # above it
SIZE = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
QUICK_SIZE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def updates_to(curve: list[list[float]], loss: float) -> float | None:
    """The update, between two evaluations by a straight line, at which `curve` first comes down to `loss`.

    Example:

    ```python
    >>> updates_to([[10, 7.0], [20, 6.0], [30, 5.0]], 5.5)
    25.0

    ```
    """
    for i, (step, value) in enumerate(curve):
        if value <= loss:
            if i == 0:
                return float(step)
            before, above = curve[i - 1]
            return before + (step - before) * (above - loss) / (above - value)
    return None


def pretrain_both(args: ReproduceArguments, texts: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Placement -> result of its pretraining."""
    size = QUICK_SIZE if args.quick else SIZE
    steps = args.max_steps or (20 if args.quick else 300)
    common = {"learning_rate": 1e-3, "max_steps": steps, "seed": seed, **size}
    return {
        placement: remembered(
            pretrain_one,
            {"norm_placement": placement, "warmup_type": warmup, **common},
            args.folder / f"pretrain-{placement}",
            texts,
        )
        for placement, warmup in ARMS.items()
    }


def finetune_both(
    args: ReproduceArguments, texts: Path, pretrained: dict[str, dict[str, Any]], seeds: list[int]
) -> dict[tuple[str, str], list[float]]:
    """`(placement, task)` -> accuracies, one a seed."""
    accuracies: dict[tuple[str, str], list[float]] = {}
    for placement, task in product(ARMS, TASKS):
        updates = args.max_steps or (10 if args.quick else TASKS[task])
        for seed in seeds:
            settings = {
                "norm_placement": placement,
                "task": task,
                "learning_rate": 1e-3,
                "max_steps": min(updates, TASKS[task]),
                "seed": seed,
                "pretraining": pretrained[placement]["settings"],
            }
            folder = args.folder / f"finetune-{placement}-{task}-seed{seed}"
            result = remembered(finetune_one, settings, folder, texts, args.folder / f"pretrain-{placement}")
            accuracies.setdefault((placement, task), []).append(result["accuracy"])
    return accuracies


def run(args: ReproduceArguments) -> Outcome:
    """Pretrain both with the first seed, fine-tune both with all, draw the losses."""
    texts, seeds = find_texts(args.data_dir), args.seeds_or(full=3)
    pretrained = pretrain_both(args, texts, seeds[0])
    accuracies = finetune_both(args, texts, pretrained, seeds)
    curves = {placement: result["evaluations"] for placement, result in pretrained.items()}
    rows = [
        [NAMES[placement], f"{curves[placement][-1][1]:.3f}"]
        + [mean_and_spread(accuracies[placement, task]) for task in TASKS]
        for placement in ARMS
    ]
    table = table_of(["", "held-out loss", *(f"{task}, accuracy" for task in TASKS)], rows)
    numbers = {
        "evaluations": curves,
        "accuracies": {f"{placement}, {task}": values for (placement, task), values in accuracies.items()},
    }
    return Outcome(draw(curves), verdicts(curves, accuracies, args.quick), table, numbers)


def draw(curves: dict[str, list[list[float]]]) -> Figure:
    """Held-out loss over updates, and where Pre-LN comes to Post-LN's last."""
    figure = blank_figure(8, 4)
    axes = blank_axes(figure, "Masked-LM loss on held-out text", "loss")
    for color, (placement, curve) in zip(COLORS, curves.items(), strict=False):
        axes.plot(*zip(*curve, strict=True), color=color, marker=".", label=NAMES[placement])
    last_step, last = curves["post"][-1]
    reached = updates_to(curves["pre"], last)
    if reached:
        axes.plot([reached, last_step], [last, last], color="black", linewidth=0.8, linestyle=":")
        words = f"the same loss after {reached:.0f} and {last_step:.0f} updates"
        axes.annotate(words, (last_step, last), (0, 34), textcoords="offset points", fontsize=8, ha="right")
    late = [value for curve in curves.values() for step, value in curve if step > last_step / 8]
    margin = 0.08 * (max(late) - min(late))
    axes.set_ylim(min(late) - margin, max(late) + margin)  # the steep beginning would flatten what follows
    axes.legend(frameon=False, fontsize=8)
    return figure


def verdicts(
    curves: dict[str, list[list[float]]], accuracies: dict[tuple[str, str], list[float]], quick: bool
) -> list[Verdict]:
    """Updates to the same loss, and the two checkpoints on tasks."""
    steps, last = curves["post"][-1]
    reached = updates_to(curves["pre"], last)
    measured = f"Pre-LN did not come to Post-LN's final loss of {last:.3f} in {steps} updates"
    if reached:
        measured = f"Pre-LN came to Post-LN's final loss of {last:.3f} at update {reached:.0f} of {steps}: "
        measured += f"{steps / reached:.2f} times fewer"
    pairs = {task: (accuracies["pre", task], accuracies["post", task]) for task in TASKS}
    learned = [pair for task, pair in pairs.items() if max(map(mean, pair)) > MAJORITY[task] + LEARNED]
    words = [f"{task} {mean_and_spread(pre)} against {mean_and_spread(post)}" for task, (pre, post) in pairs.items()]
    return [
        Verdict(
            "Pre-LN without warmup reaches Post-LN's final loss in 1.4 times fewer updates (here: at least 1.2)",
            XIONG,
            measured,
            None if quick else bool(reached and steps / reached >= 1.2),
        ),
        Verdict(
            "what Pre-LN learned is worth as much after fine-tuning (here: mean accuracy at most 0.01 lower, on tasks "
            f"that either learned, {LEARNED} above the larger class)",
            "Xiong et al. 2020, arXiv:2002.04745, section 4",
            "Pre-LN against Post-LN, accuracy: " + ", ".join(words),
            None if quick or not learned else all(mean(pre) >= mean(post) - 0.01 for pre, post in learned),
        ),
    ]
