"""Model cards of reproductions: claims with verdicts, numbers, figures, and limits."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import ModelCard

from hf_warmup.model_card import Experiment, experiment_card
from hf_warmup.report import plot_gradient_norms, read_run

from .outcome import About, Outcome, ReproduceArguments


FIGURE, HEAT_MAP = "figure.png", "gradient_norms.png"
CARDS = Path(__file__).parents[2] / "model_cards"


def save_figures(outcome: Outcome, about: About, folder: Path) -> dict[str, str]:
    """Save the figure, and the gradient norms if there are recordings; return file name to caption."""
    outcome.figure.savefig(folder / FIGURE)
    captions = {FIGURE: about.caption}
    if outcome.recordings:
        plot_gradient_norms([read_run(run) for run in outcome.recordings]).savefig(folder / HEAT_MAP)
        captions[HEAT_MAP] = "Gradient norm of each layer before clipping, first seed"
    return captions


def reproduction_card(about: About, question: str, outcome: Outcome, args: ReproduceArguments) -> ModelCard:
    """Return the card of a reproduction; its figures are saved in `args.folder`."""
    rows = [
        f"| {verdict.claim} | {verdict.source} | {verdict.measured} | {verdict.word} |" for verdict in outcome.verdicts
    ]
    table = "\n".join(["| claim | source | measured | verdict |", "| --- | --- | --- | --- |", *rows])
    flags = ["--quick"] if args.quick else []
    flags += ["--seeds", *map(str, args.seeds)] if args.seeds else []
    flags += ["--max_steps", str(args.max_steps)] if args.max_steps else []
    experiment = Experiment(
        title=about.title,
        question=f"{question}\n\n{table}",
        command=" ".join(["python -m scripts.reproductions", args.what, *flags]),
        task=about.task,
        limits=about.limits + (" This is the small version (`--quick`)." if args.quick else ""),
        figures=save_figures(outcome, about, args.folder),
    )
    return experiment_card(experiment, outcome.results)


def publish_card(folder: Path, name: str) -> Path:
    """Copy the card and the figures that it shows from a run folder to `model_cards/`; return the card's path."""
    text, images = (folder / "README.md").read_text(encoding="utf-8"), f"images/{name}"
    (CARDS / images).mkdir(parents=True, exist_ok=True)
    for figure in folder.glob("*.png"):
        if f"]({figure.name})" in text:
            shutil.copy(figure, CARDS / images)
            text = text.replace(f"]({figure.name})", f"]({images}/{figure.name})")
    card = CARDS / f"{name}.md"
    card.write_text(text, encoding="utf-8")
    return card
