"""What every figure's `run` is asked with and gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_warmup._validation import check_number

from .texts import find_texts


if TYPE_CHECKING:
    from matplotlib.figure import Figure


FIGURES = ("depth", "profile", "variance", "warmup", "untuned", "optimizers", "pretrain", "finetune")


@dataclass
class ReproduceArguments:
    """What to reproduce, and how much of it."""

    what: str = field(metadata={"help": f"The figure: {', '.join(FIGURES)}."})
    quick: bool = field(default=False, metadata={"help": "Under a minute on two cores: the structure, not the proof."})
    seeds: list[int] = field(default_factory=list, metadata={"help": "Instead of the figure's own."})
    max_steps: int = field(default=0, metadata={"help": "Updates of each training run; 0 for the figure's own."})
    num_workers: int = field(default=0, metadata={"help": "Training runs at a time; 0 for one on each core."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the texts, for pretrain and finetune; default: $HF_WARMUP_DATA."}
    )
    output_dir: str = field(default="runs/reproduce", metadata={"help": "Results go to a folder of the figure's name."})

    def check(self) -> None:
        """Refuse numbers out of their range, and texts that are not there, in one sentence."""
        for name in ("max_steps", "num_workers"):
            check_number(name, getattr(self, name), integer=True)
        for seed in self.seeds:
            check_number("seeds", seed, integer=True)
        if self.what in ("pretrain", "finetune"):
            find_texts(self.data_dir)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.what

    def seeds_or(self, full: int, quick: int = 1) -> list[int]:
        """`--seeds`, or as many as this figure takes."""
        return self.seeds or list(range(quick if self.quick else full))


@dataclass(frozen=True)
class Verdict:
    """A claim of a paper beside what was measured; `holds` is `None` where too little was run to say."""

    paper: str
    source: str
    measured: str
    holds: bool | None

    @property
    def word(self) -> str:
        return {True: "holds", False: "does not hold", None: "open: too little was run"}[self.holds]

    def __str__(self) -> str:
        return f"paper says   {self.paper} ({self.source})\nwe measured  {self.measured}\n=>           {self.word}"


class About(NamedTuple):
    """What a card says of a reproduction that its numbers do not."""

    title: str
    task: tuple[str, str]  # the Hub's task type and dataset
    caption: str  # of the figure
    limits: str


@dataclass
class Outcome:
    """A figure, its verdicts, a table in words and the numbers behind them (JSON's kinds only).

    `results` are the numbers as a card has them, measure -> what it is of -> one value a seed; `recordings` are run
    folders whose gradient norms are worth a look.
    """

    figure: Figure
    verdicts: list[Verdict]
    table: str
    numbers: Any
    results: dict[str, dict[str, list[float]]]
    recordings: list[Path] = field(default_factory=list)


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(line) for line in aligned)
