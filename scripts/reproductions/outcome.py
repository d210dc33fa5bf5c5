"""Arguments and results that all reproductions share.

A reproduction is a module with `ABOUT`, an `About`, and `run(args: ReproduceArguments) -> Outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_warmup.cli import check_minimums

from .texts import check_data_dir


if TYPE_CHECKING:
    from matplotlib.figure import Figure


REPRODUCTIONS = (
    "untuned",
    "variance",
    "depth",
    "profile",
    "warmup",
    "auto",
    "ramps",
    "rules",
    "optimizers",
    "scratch",
    "pretrain",
    "finetune",
    "pretrained",
    "translation",
)


@dataclass
class ReproduceArguments:
    """Which reproduction to run, and at which size."""

    what: str = field(metadata={"help": "The reproduction.", "choices": REPRODUCTIONS})
    quick: bool = field(default=False, metadata={"help": "A small version in under a minute: not the result."})
    seeds: list[int] = field(default_factory=list, metadata={"help": "Seeds to use instead of the default ones."})
    max_steps: int = field(default=0, metadata={"help": "Updates per training run; 0 for the default number."})
    num_workers: int = field(default=0, metadata={"help": "Training runs at a time; 0 for one per core."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the texts (default: $HF_WARMUP_DATA)."})
    output_dir: str = field(default="runs/reproduce", metadata={"help": "Each reproduction has a subfolder of it."})
    card: bool = field(default=False, metadata={"help": "Also store the model card and its figures in model_cards/."})

    def check(self) -> None:
        """Check the ranges, and that the texts exist if the reproduction needs them."""
        check_minimums(self, max_steps=0, num_workers=0, seeds=0)
        check_data_dir(self.what, self.data_dir)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.what

    def seeds_or(self, full: int, quick: int = 1) -> list[int]:
        """Return `--seeds`, or the first `full` seeds (`quick` with `--quick`)."""
        return self.seeds or list(range(quick if self.quick else full))


@dataclass(frozen=True)
class Verdict:
    """A claim compared with a measurement; `holds` is `None` if too little was run to decide."""

    claim: str
    source: str
    measured: str
    holds: bool | None

    @property
    def word(self) -> str:
        return {True: "holds", False: "does not hold", None: "undecided: too few runs"}[self.holds]

    def __str__(self) -> str:
        return f"claim     {self.claim} ({self.source})\nmeasured  {self.measured}\n=>        {self.word}"


def every(*answers: bool | None) -> bool | None:
    """Return whether all answers are true; `None` if one is undecided."""
    return None if None in answers else all(answers)


class About(NamedTuple):
    """What a model card says about a reproduction besides its numbers."""

    title: str
    task: tuple[str, str]  # the Hub's task type and dataset
    caption: str  # of the figure
    limits: str


@dataclass
class Outcome:
    """The outcome of a reproduction.

    Args:
        figure (`matplotlib.figure.Figure`): The figure.
        verdicts (`list[Verdict]`): One per claim.
        table (`str`): The main numbers as aligned text.
        numbers (`Any`): All numbers, as JSON types.
        results (`dict`): Metric to configuration to one value per seed, as model cards have them.
        recordings (`list[Path]`): Run folders whose gradient norms the card shows.
    """

    figure: Figure
    verdicts: list[Verdict]
    table: str
    numbers: Any
    results: dict[str, dict[str, list[float]]]
    recordings: list[Path] = field(default_factory=list)


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a text table with aligned columns; the first column is aligned to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(line) for line in aligned)
