"""A reproduction as a model card: the claims with their verdicts, the numbers, the figure, and what was left out."""

from __future__ import annotations

from huggingface_hub import ModelCard

from hf_warmup.model_card import Experiment, experiment_card
from hf_warmup.report import plot_gradient_norms, read_run

from .outcome import About, Outcome, ReproduceArguments


FIGURE, HEAT_MAP = "figure.png", "gradient_norms.png"


def write_figures(outcome: Outcome, args: ReproduceArguments) -> dict[str, str]:
    """The figure, and the gradient norms of runs if there are any; file name -> caption."""
    outcome.figure.savefig(args.folder / FIGURE)
    captions = {FIGURE: ""}
    if outcome.recordings:
        plot_gradient_norms([read_run(folder) for folder in outcome.recordings]).savefig(args.folder / HEAT_MAP)
        captions[HEAT_MAP] = "Gradient norm of each layer before clipping, first seed"
    return captions


def reproduction_card(about: About, question: str, outcome: Outcome, args: ReproduceArguments) -> ModelCard:
    """The card of what was measured just now, with its figures beside it."""
    rows = [
        f"| {verdict.paper} | {verdict.source} | {verdict.measured} | {verdict.word} |" for verdict in outcome.verdicts
    ]
    table = "\n".join(["| the paper says | source | we measured | verdict |", "| --- | --- | --- | --- |", *rows])
    flags = "".join(
        f" --{name} {value}"
        for name, value in (("seeds", " ".join(map(str, args.seeds))), ("max_steps", args.max_steps))
        if value
    )
    experiment = Experiment(
        title=about.title,
        question=f"{question}\n\n{table}",
        command=f"python -m scripts.reproductions {args.what}{' --quick' * args.quick}{flags}",
        task=about.task,
        limits=about.limits + (" A quick look, not the full size." if args.quick else ""),
        figures={**write_figures(outcome, args), FIGURE: about.caption},
    )
    return experiment_card(experiment, outcome.results)
