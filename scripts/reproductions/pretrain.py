"""Does Pre-LN without warmup pretrain faster than Post-LN with it on real text, and is it as good after fine-tuning?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from hf_warmup.report import mean_and_spread
from hf_warmup.report.figures import COLORS, blank_axes, blank_figure

from .kept_runs import Result, Settings, run_all, select
from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .texts import find_texts
from .training import finetune_one, pretrain_one


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ABOUT = About(
    "Pretraining a small BERT: Post-LN with warmup against Pre-LN without",
    ("fill-mask", "us-speeches-and-wikitext-2"),
    "Masked-LM loss on held-out text; dotted: the other learning rate, dashed: Pre-LN with warmup",
    "Four layers of width 128, a million tokens, six epochs, one pretraining seed, two learning rates: much smaller "
    "than the experiment in the paper.",
)
XIONG = "Xiong et al. 2020, arXiv:2002.04745, section 4: 700k updates of Post-LN are 500k of Pre-LN"
PLACEMENT_WARMUPS = {"post": "linear", "pre": "none"}  # placement -> warmup
STEPS, RATES, FINETUNING_RATE = 3000, (1e-3, 3e-3), 1e-3
TASKS = {"SST-2": 500, "RTE": 240}  # updates of fine-tuning: a quarter of an epoch, three epochs
MAJORITY = {"SST-2": 444 / 872, "RTE": 146 / 277}  # accuracy of always predicting the majority class
LEARNED = 0.02  # a model has learned if its accuracy is this much above MAJORITY
SIZE = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
QUICK_SIZE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def updates_to(curve: list[list[float]], loss: float) -> float | None:
    """Return the update at which `curve` first reaches `loss`, interpolated linearly, or `None`.

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


def pretraining(args: ReproduceArguments, placement: str, warmup: str, lr: float, seed: int) -> Settings:
    """Return the settings of one pretraining run."""
    return {
        "norm_placement": placement,
        "warmup_type": warmup,
        "learning_rate": lr,
        "max_steps": args.max_steps or (20 if args.quick else STEPS),
        "seed": seed,
        **(QUICK_SIZE if args.quick else SIZE),
    }


def checkpoint_name(pretrained: Settings) -> str:
    placement, warmup = pretrained["norm_placement"], pretrained["warmup_type"]
    return f"{placement}-{warmup}-lr{pretrained['learning_rate']:g}-seed{pretrained['seed']}"


def pretrain_some(args: ReproduceArguments, texts: Path, jobs: list[Settings]) -> list[Result]:
    """Execute the pretraining runs that have no result yet; `finetune` starts from the same checkpoints."""
    folder = Path(args.output_dir) / "pretrain" / "pretrained"
    planned = {checkpoint_name(settings): settings for settings in jobs}
    return run_all(partial(pretrain_one, texts=texts), planned, folder, args.num_workers)


def pretrain_all(args: ReproduceArguments, texts: Path, seed: int) -> list[Result]:
    """Pretrain both configurations at every learning rate."""
    cells = product(RATES[:1] if args.quick else RATES, PLACEMENT_WARMUPS.items())
    return pretrain_some(args, texts, [pretraining(args, *configuration, lr, seed) for lr, configuration in cells])


def best_of(pretrained: list[Result]) -> dict[str, Result]:
    """Return placement -> its run with the lowest final loss on held-out text."""
    return {
        placement: min(select(pretrained, norm_placement=placement), key=lambda run: run["evaluations"][-1][1])
        for placement in PLACEMENT_WARMUPS
    }


def finetune_all(args: ReproduceArguments, texts: Path, jobs: Mapping[str, Settings]) -> list[Result]:
    """Execute the fine-tuning runs that have no result yet; `jobs` maps folder names to settings."""
    run_one = partial(finetune_one, texts=texts, checkpoints=Path(args.output_dir) / "pretrain" / "pretrained")
    return run_all(run_one, jobs, args.folder / "finetuned", args.num_workers)


def finetuning(args: ReproduceArguments, pretrained: Result, task: str) -> Settings:
    """Return the settings of a fine-tuning run besides warmup, learning rate and seed."""
    updates = 10 if args.quick else TASKS[task]
    return {
        "norm_placement": pretrained["norm_placement"],
        "task": task,
        "max_steps": min(updates, args.max_steps or updates),
        "checkpoint": checkpoint_name(pretrained),
        "pretraining_updates": pretrained["max_steps"],
    }


def run(args: ReproduceArguments) -> Outcome:
    """Pretrain at both learning rates with the first seed, and fine-tune the better run per placement with all seeds.

    Pre-LN is also pretrained with the warmup of Post-LN, to separate the effects of warmup and placement.
    """
    texts, seeds = find_texts(args.data_dir), args.seeds_or(full=3)
    pretrained = pretrain_all(args, texts, seeds[0])
    best = best_of(pretrained)
    control = pretraining(args, "pre", PLACEMENT_WARMUPS["post"], best["pre"]["learning_rate"], seeds[0])
    pretrained += pretrain_some(args, texts, [control])
    jobs = {
        f"{placement}-{task}-seed{seed}": finetuning(args, best[placement], task)
        | {"warmup_type": "linear", "learning_rate": FINETUNING_RATE, "seed": seed}
        for seed, placement, task in product(seeds, PLACEMENT_WARMUPS, TASKS)
    }
    finetuned = finetune_all(args, texts, jobs)
    accuracies = {
        (placement, task): [run["accuracy"] for run in select(finetuned, norm_placement=placement, task=task)]
        for placement, task in product(PLACEMENT_WARMUPS, TASKS)
    }
    rows = [
        [in_words(run), f"{run['evaluations'][-1][1]:.3f}"]
        + [mean_and_spread(accuracies[run["norm_placement"], task]) if run in best.values() else "" for task in TASKS]
        for run in pretrained
    ]
    results = {
        "held-out loss": {in_words(run): [run["evaluations"][-1][1]] for run in pretrained},
        **{f"{task}, accuracy": {in_words(run): accuracies[p, task] for p, run in best.items()} for task in TASKS},
    }
    return Outcome(
        draw(pretrained, best),
        verdicts(best, accuracies, args.quick),
        table_of(["", "held-out loss", *(f"{task}, accuracy" for task in TASKS)], rows),
        {"pretrained": pretrained, "finetuned": finetuned},
        results,
        [Path(args.output_dir) / "pretrain" / "pretrained" / checkpoint_name(run) for run in best.values()],
    )


def in_words(run: Result) -> str:
    warmup = "no warmup" if run["warmup_type"] == "none" else "warmup"
    return f"{run['norm_placement'].capitalize()}-LN, {warmup}, lr {run['learning_rate']:g}"


def draw(pretrained: list[Result], best: dict[str, Result]) -> Figure:
    """Draw held-out loss over updates, and where the best Pre-LN run reaches the final loss of the best Post-LN run."""
    figure = blank_figure(8, 4)
    axes = blank_axes(figure, "Masked-LM loss on held-out text", "loss")
    for run in pretrained:
        color = COLORS[list(PLACEMENT_WARMUPS).index(run["norm_placement"])]
        is_control = run["warmup_type"] != PLACEMENT_WARMUPS[run["norm_placement"]]
        style = "-" if run in best.values() else "--" if is_control else ":"
        axes.plot(*zip(*run["evaluations"], strict=True), style, color=color, marker=".", label=in_words(run))
    last_step, last = best["post"]["evaluations"][-1]
    reached = updates_to(best["pre"]["evaluations"], last)
    if reached and reached < last_step:
        axes.plot([reached, last_step], [last, last], color="black", linewidth=0.8, linestyle="--")
        words = f"the same loss after {reached:.0f} and {last_step:.0f} updates"
        axes.annotate(words, (last_step, last), (0, 34), textcoords="offset points", fontsize=8, ha="right")
    late = [value for run in pretrained for step, value in run["evaluations"] if step > last_step / 8]
    margin = 0.08 * (max(late) - min(late))
    axes.set_ylim(min(late) - margin, max(late) + margin)  # the steep start would hide the differences
    axes.legend(frameon=False, fontsize=8)
    return figure


def verdicts(best: dict[str, Result], accuracies: dict[tuple[str, str], list[float]], quick: bool) -> list[Verdict]:
    """Judge the updates to the same loss and the accuracy after fine-tuning."""
    steps, last = best["post"]["evaluations"][-1]
    reached = updates_to(best["pre"]["evaluations"], last)
    losses = [f"{in_words(run)} {run['evaluations'][-1][1]:.3f}" for run in best.values()]
    final = f"final losses: {', '.join(losses)}"
    measured = f"not reached in {steps} updates; {final}"
    if reached:
        measured = f"reached at update {reached:.0f} of {steps}, {steps / reached:.2f} times fewer; {final}"
    pairs = {task: (accuracies["pre", task], accuracies["post", task]) for task in TASKS}
    learned = [pair for task, pair in pairs.items() if max(map(mean, pair)) > MAJORITY[task] + LEARNED]
    words = [f"{task} {mean_and_spread(pre)} against {mean_and_spread(post)}" for task, (pre, post) in pairs.items()]
    return [
        Verdict(
            "Pre-LN without warmup reaches the final loss of Post-LN in 1.4 times fewer updates (here: at least 1.2, "
            "each at the better of two learning rates)",
            XIONG,
            measured,
            None if quick else bool(reached and steps / reached >= 1.2),
        ),
        Verdict(
            "after fine-tuning Pre-LN is as good as Post-LN (here: mean accuracy at most 0.01 lower, on tasks where "
            f"either is {LEARNED} above the majority class)",
            "Xiong et al. 2020, arXiv:2002.04745, section 4",
            "Pre-LN against Post-LN, accuracy: " + ", ".join(words),
            None if quick or not learned else all(mean(pre) >= mean(post) - 0.01 for pre, post in learned),
        ),
    ]
