"""Masked-LM pretraining on real text, Post-LN with warmup against Pre-LN without, and both fine-tuned after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from hf_warmup.report import mean_and_spread
from hf_warmup.report.figures import COLORS, blank_axes, blank_figure
from kept_runs import Result, Settings, run_all

from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .texts import find_texts
from .training import finetune_one, pretrain_one


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ABOUT = About(
    "Pretraining a small BERT: Post-LN with warmup against Pre-LN without",
    ("fill-mask", "us-speeches-and-wikitext-2"),
    "Masked-LM loss on held-out text, one line a seed",
    "Four layers of width 128, a million tokens, one learning rate for both placements, six passes: far from where "
    "the paper stops.",
)
XIONG = "Xiong et al. 2020, arXiv:2002.04745, section 4: 700k updates of Post-LN are 500k of Pre-LN"
ARMS = {"post": "linear", "pre": "none"}  # placement -> warmup
NAMES = {"post": "Post-LN, warmup", "pre": "Pre-LN, no warmup"}
STEPS = 3000
TASKS = {"SST-2": 500, "RTE": 240}  # updates of fine-tuning: a quarter of an epoch, three epochs
MAJORITY = {"SST-2": 444 / 872, "RTE": 146 / 277}  # accuracy of always answering the development set's larger class
LEARNED = 0.02  # above it
SIZE = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
QUICK_SIZE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
Curves = dict[str, list[list[list[float]]]]  # placement -> one a seed -> [update, held-out loss]


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


def pretraining(args: ReproduceArguments, placement: str, seed: int) -> Settings:
    """Settings of one pretraining run."""
    return {
        "norm_placement": placement,
        "warmup_type": ARMS[placement],
        "learning_rate": 1e-3,
        "max_steps": args.max_steps or (20 if args.quick else STEPS),
        "seed": seed,
        **(QUICK_SIZE if args.quick else SIZE),
    }


def checkpoint_name(settings: Settings) -> str:
    return f"pretrain-{settings['norm_placement']}-seed{settings['seed']}"


def pretrain_all(args: ReproduceArguments, texts: Path, placements: Iterable[str], seeds: list[int]) -> list[Result]:
    """Pretrain what has not been pretrained yet; `finetune` begins from the same checkpoints."""
    jobs = [pretraining(args, placement, seed) for seed in seeds for placement in placements]
    folder = Path(args.output_dir) / "pretrain"
    planned = {folder / checkpoint_name(settings): settings for settings in jobs}
    return run_all(partial(pretrain_one, texts=texts), planned, folder, args.num_workers)


def finetune_all(args: ReproduceArguments, texts: Path, jobs: Mapping[str, Settings]) -> list[Result]:
    """Fine-tune what has not been fine-tuned yet; name of the folder -> settings."""
    folder = args.folder / "finetuned"
    run_one = partial(finetune_one, texts=texts, checkpoints=Path(args.output_dir) / "pretrain")
    return run_all(run_one, {folder / name: settings for name, settings in jobs.items()}, folder, args.num_workers)


def finetuning(args: ReproduceArguments, task: str, placement: str, warmup: str, lr: float, seed: int) -> Settings:
    """Settings of one fine-tuning run, from the checkpoint of the same seed."""
    updates = 10 if args.quick else TASKS[task]
    pretrained = pretraining(args, placement, seed)
    return {
        "norm_placement": placement,
        "task": task,
        "warmup_type": warmup,
        "learning_rate": lr,
        "max_steps": min(updates, args.max_steps or updates),
        "seed": seed,
        "checkpoint": checkpoint_name(pretrained),
        "pretraining": pretrained,
    }


def run(args: ReproduceArguments) -> Outcome:
    """Pretrain both, fine-tune both, draw the losses."""
    texts, seeds = find_texts(args.data_dir), args.seeds_or(full=3)
    pretrained = pretrain_all(args, texts, ARMS, seeds)
    jobs = {
        f"{placement}-{task}-seed{seed}": finetuning(args, task, placement, "linear", 1e-3, seed)
        for seed, placement, task in product(seeds, ARMS, TASKS)
    }
    accuracies: dict[tuple[str, str], list[float]] = {}
    for result in finetune_all(args, texts, jobs):
        accuracies.setdefault((result["norm_placement"], result["task"]), []).append(result["accuracy"])
    curves: Curves = {placement: [] for placement in ARMS}
    for result in pretrained:
        curves[result["norm_placement"]].append(result["evaluations"])
    rows = [
        [NAMES[placement], mean_and_spread([curve[-1][1] for curve in curves[placement]])]
        + [mean_and_spread(accuracies[placement, task]) for task in TASKS]
        for placement in ARMS
    ]
    table = table_of(["", "held-out loss", *(f"{task}, accuracy" for task in TASKS)], rows)
    numbers = {
        "evaluations": curves,
        "accuracies": {f"{placement}, {task}": values for (placement, task), values in accuracies.items()},
    }
    results = {
        "held-out loss": {NAMES[placement]: [curve[-1][1] for curve in curves[placement]] for placement in ARMS},
        **{f"{task}, accuracy": {NAMES[p]: accuracies[p, task] for p in ARMS} for task in TASKS},
    }
    recordings = [args.folder / checkpoint_name(result) for result in pretrained[: len(ARMS)]]
    return Outcome(draw(curves), verdicts(curves, accuracies, args.quick), table, numbers, results, recordings)


def speedups(curves: Curves) -> list[float | None]:
    """For each seed, Post-LN's updates over those after which Pre-LN has its final loss; `None` if it never has."""
    reached = [updates_to(pre, post[-1][1]) for post, pre in zip(curves["post"], curves["pre"], strict=True)]
    return [at and post[-1][0] / at for post, at in zip(curves["post"], reached, strict=True)]


def draw(curves: Curves) -> Figure:
    """Held-out loss over updates, one line a seed, and where the first Pre-LN comes to its Post-LN's last."""
    figure = blank_figure(8, 4)
    axes = blank_axes(figure, "Masked-LM loss on held-out text", "loss")
    for color, (placement, seeds) in zip(COLORS, curves.items(), strict=False):
        for i, curve in enumerate(seeds):
            label = None if i else NAMES[placement]
            axes.plot(*zip(*curve, strict=True), color=color, marker=".", linewidth=1, label=label)
    last_step, last = curves["post"][0][-1]
    reached = updates_to(curves["pre"][0], last)
    if reached:
        axes.plot([reached, last_step], [last, last], color="black", linewidth=0.8, linestyle=":")
        words = f"the same loss after {reached:.0f} and {last_step:.0f} updates"
        axes.annotate(words, (last_step, last), (0, 34), textcoords="offset points", fontsize=8, ha="right")
    late = [value for seeds in curves.values() for curve in seeds for step, value in curve if step > last_step / 8]
    margin = 0.08 * (max(late) - min(late))
    axes.set_ylim(min(late) - margin, max(late) + margin)  # the steep beginning would flatten what follows
    axes.legend(frameon=False, fontsize=8)
    return figure


def verdicts(curves: Curves, accuracies: dict[tuple[str, str], list[float]], quick: bool) -> list[Verdict]:
    """Updates to the same loss, and the two checkpoints on tasks."""
    times = speedups(curves)
    words = ", ".join("never" if each is None else f"{each:.2f}" for each in times)
    losses = {name: mean_and_spread([curve[-1][1] for curve in curves[name]]) for name in ARMS}
    measured = f"{words} times fewer, one number a seed; final losses: Pre-LN {losses['pre']}, Post-LN {losses['post']}"
    pairs = {task: (accuracies["pre", task], accuracies["post", task]) for task in TASKS}
    learned = [pair for task, pair in pairs.items() if max(map(mean, pair)) > MAJORITY[task] + LEARNED]
    words = [f"{task} {mean_and_spread(pre)} against {mean_and_spread(post)}" for task, (pre, post) in pairs.items()]
    return [
        Verdict(
            "Pre-LN without warmup reaches Post-LN's final loss in 1.4 times fewer updates (here: at least 1.2)",
            XIONG,
            measured,
            None if quick else all(each is not None and each >= 1.2 for each in times),
        ),
        Verdict(
            "what Pre-LN learned is worth as much after fine-tuning (here: mean accuracy at most 0.01 lower, on tasks "
            f"that either learned, {LEARNED} above the larger class)",
            "Xiong et al. 2020, arXiv:2002.04745, section 4",
            "Pre-LN against Post-LN, accuracy: " + ", ".join(words),
            None if quick or not learned else all(mean(pre) >= mean(post) - 0.01 for pre, post in learned),
        ),
    ]
