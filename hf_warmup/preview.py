"""The learning rate of every update before training: the flags of a run in, its curve out.

    python -m hf_warmup.preview --lr_scheduler_type noam --warmup_steps 4000 --max_steps 100000
    python -m hf_warmup.preview --learning_rate 1e-3 --lr_scheduler_type cosine --warmup_type exponential \\
        --warmup_steps 0.02 --max_steps 20000 --compare linear linear:cosine none:noam --output curves.png

It takes the flags of training, or a file of them. The flags of a
training script about its model and data are ignored.
`--compare` draws other schedules beside it, each with the other flags the same: a decay (`linear` is
`--lr_scheduler_type linear`) or `warmup:decay` (`exponential:cosine` is `--warmup_type exponential --lr_scheduler_type
cosine`). Without `--output` the picture goes into the terminal.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import HfArgumentParser, TrainingArguments

from ._validation import check_number
from .cli import exit_on_user_error, parse_arguments
from .optim.adam_family import AdamFamily
from .report.figures import DASHES, blank_axes, blank_figure, line_style
from .schedules import METRIC_SCHEDULERS, WithWarmupLR, schedule_keywords
from .trainer import create_optimizer_and_scheduler
from .training_args import WarmupArgumentsMixin, WarmupTrainingArguments


if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 10_000


@dataclass(frozen=True)
class Curve:
    """One schedule: `lrs[i]` is the learning rate in force at update `updates[i]`, counted from 1."""

    label: str
    updates: list[int]
    lrs: list[float]

    @property
    def peak(self) -> tuple[float, int]:
        """The highest learning rate and the first update that has it."""
        highest = max(self.lrs)
        return highest, self.updates[self.lrs.index(highest)]


@dataclass(frozen=True)
class SchedulePreview:
    """Learning-rate curves of one run's length: text when printed, a picture in a notebook."""

    num_training_steps: int
    curves: list[Curve]

    def table(self) -> str:
        """First, peak and end of each curve, and a few values between."""
        T = self.num_training_steps
        shown = sorted({1, *(max(1, T * quarter // 4) for quarter in (1, 2, 3)), T})
        rows = [["lr at update", *map(str, shown), "peak", "at update"]]
        for curve in self.curves:
            lr_at = dict(zip(curve.updates, curve.lrs, strict=True))
            peak, at = curve.peak
            rows.append([curve.label, *(f"{lr_at[update]:.3g}" for update in shown), f"{peak:.3g}", str(at)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )

    def sketch(self, width: int = 72, height: int = 16) -> str:
        """The curves drawn in text, `width` columns by `height` rows."""
        top = max(curve.peak[0] for curve in self.curves) or 1.0
        canvas = [[" "] * width for _ in range(height)]
        marked = list(zip(self.curves, cycle(_MARKS), strict=False))
        for curve, mark in reversed(marked):  # the first one on top
            last = None
            for column in range(width):
                i = round(column / (width - 1) * (len(curve.lrs) - 1))
                row = round(curve.lrs[i] / top * (height - 1))
                low, high = sorted((row, row if last is None else last + (row > last) - (row < last)))
                for each in range(low, high + 1):
                    canvas[height - 1 - each][column] = mark
                last = row
        left = f"{top:.3g}"
        lines = [
            f"{(left, '0')[i > 0] if i in (0, height - 1) else '':>{len(left)}} │" + "".join(row).rstrip()
            for i, row in enumerate(canvas)
        ]
        pad = " " * (len(left) + 1)
        lines.append(f"{pad}└{'─' * width}")
        lines.append(f"{pad} 1{f'update {self.num_training_steps}':>{width - 1}}")
        if len(self.curves) > 1:
            lines += [f"{pad} {mark} {curve.label}" for curve, mark in marked]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """The curves as a matplotlib figure.

        Raises:
            `ValueError`: Without matplotlib.
        """
        try:
            figure = blank_figure(8, 3.6)
        except ImportError:
            raise ValueError("A picture needs matplotlib: pip install matplotlib.") from None
        axes = blank_axes(figure, "Learning rate before training", "learning rate")
        for i, curve in enumerate(self.curves):
            # Earlier lines are wider, so that those that later ones cover still show.
            width = 1.6 + 2.4 * (len(self.curves) - 1 - i) / len(self.curves)
            color, dash = line_style(i)
            style = {"color": color, "linestyle": DASHES[dash], "linewidth": width}
            axes.plot(curve.updates, curve.lrs, label=curve.label, **style)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.sketch()}"

    def _repr_png_(self) -> bytes | None:
        try:
            figure = self.figure()
        except ValueError:  # no matplotlib: the notebook shows the text
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


_MARKS = ("*", "o", "+", "x", "#", "@", "%", "=")


def preview_schedule(
    args: WarmupArgumentsMixin,
    num_training_steps: int | None = None,
    compare: Sequence[str | WarmupArgumentsMixin] = (),
) -> SchedulePreview:
    """The learning rate in force at every update of the run of `args`, from the schedule that training builds.

    With an optimizer that warms up by itself (`radam`, `adam_warmup`) it is that optimizer's `scheduled_lr`. A schedule
    that follows a metric is shown as long as the metric does not act. Beyond 10,000 updates a curve is sampled.

    Args:
        args ([`WarmupTrainingArguments`]): The arguments that the Trainer gets.
        num_training_steps (`int`, *optional*): Updates of the whole run, where `args` give it in epochs.
        compare (`Sequence`, *optional*): Other schedules beside it: `"linear"` for another `lr_scheduler_type`,
            `"exponential:cosine"` for another `warmup_type` too, or other arguments.

    Returns:
        [`SchedulePreview`]: With `curves`, `table()`, `sketch()` and `figure()`; text when printed, a picture in a
        notebook.

    Raises:
        `ValueError`: For what training would refuse, and where the run's length is not known.

    Example:

    ```python
    >>> args = WarmupTrainingArguments(lr_scheduler_type="noam", warmup_steps=4, max_steps=16, learning_rate=0.1)
    >>> print(preview_schedule(args, compare=["exponential:linear"]).table())
    lr at update                       1       4       8      12       16    peak  at update
    noam, warmup 4                 0.025     0.1  0.0707  0.0577     0.05     0.1          4
    exponential:linear, warmup 4  0.0221  0.0632  0.0648  0.0396  0.00818  0.0713          5

    ```
    """
    if num_training_steps is None:
        if args.max_steps <= 0:
            raise ValueError(
                f"max_steps={args.max_steps}: expected the run's length in updates; num_train_epochs="
                f"{args.num_train_epochs:g} becomes one only with the data's size, give it as num_training_steps."
            )
        num_training_steps = args.max_steps
    check_number("num_training_steps", num_training_steps, 1, integer=True)
    if isinstance(compare, str):
        raise ValueError(f"compare={compare!r}: expected a list, such as [{compare!r}].")
    entries = [args, *(_replaced(args, each) if isinstance(each, str) else each for each in compare)]
    return SchedulePreview(num_training_steps, [_curve(each, num_training_steps) for each in entries])


def _replaced(args: WarmupArgumentsMixin, entry: str) -> WarmupArgumentsMixin:
    """`args` with the schedule that `entry` names, and those keywords that it takes."""
    warmup_type, colon, name = entry.rpartition(":")
    args = copy(args)
    args.lr_scheduler_type = name
    args.warmup_type = warmup_type if colon else args.warmup_type
    kwargs, args.lr_scheduler_kwargs = args.lr_scheduler_kwargs, {}
    args._check_warmup_arguments()
    decay, warmup = schedule_keywords(name, args.warmup_type)
    args.lr_scheduler_kwargs = {key: value for key, value in kwargs.items() if key in {**decay, **warmup}}
    return args


def _curve(args: WarmupArgumentsMixin, num_training_steps: int) -> Curve:
    try:
        pair = create_optimizer_and_scheduler(nn.Linear(1, 1), args, num_training_steps)
    except ImportError:  # an optimizer that is not installed here; a schedule reads no more of it than AdamW has
        args = copy(args)
        args.optim, args.optim_args = "adamw", None
        pair = create_optimizer_and_scheduler(nn.Linear(1, 1), args, num_training_steps)
    num_warmup_steps = args.get_warmup_steps(num_training_steps)
    T, stride = num_training_steps, -(-num_training_steps // MAX_POINTS)
    corners = {1, num_warmup_steps, num_warmup_steps + 1, *(T * quarter // 4 for quarter in (1, 2, 3)), T}
    updates = sorted({*range(1, T + 1, stride), *(update for update in corners if 1 <= update <= T)})
    lr = _lr_in_force(*pair)
    return Curve(_label(args, pair[0], num_warmup_steps), updates, [lr(update) for update in updates])


def _label(args: WarmupArgumentsMixin, optimizer: Optimizer, num_warmup_steps: int) -> str:
    name = args.lr_scheduler_type.value
    label = name if args.warmup_type is None else f"{args.warmup_type}:{name}"
    label += f", warmup {num_warmup_steps}" if num_warmup_steps else ""
    label += f", {args.optim.value}" if args.optim in ("radam", "adam_warmup") else ""
    return label + (", until its metric acts" if name in METRIC_SCHEDULERS else "")


def _lr_in_force(optimizer: Optimizer, scheduler: LRScheduler) -> Callable[[int], float]:
    """The learning rate at update t: the schedule's, through the optimizer's own warmup if it has one."""
    group = optimizer.param_groups[0]

    def scheduled(t: int) -> float:
        if isinstance(scheduler, LambdaLR):
            return scheduler.base_lrs[0] * scheduler.lr_lambdas[0](t - 1)
        # A schedule that follows a metric starts at the group's own.
        return (
            scheduler.base_lrs[0] * scheduler.warmups[0](t - 1) if isinstance(scheduler, WithWarmupLR) else group["lr"]
        )

    def in_force(t: int) -> float:
        return optimizer.effective_lr({**group, "lr": scheduled(t)}, t)

    return in_force if isinstance(optimizer, AdamFamily) else scheduled


@dataclass
class PreviewArguments:
    """What to draw."""

    compare: list[str] = field(
        default_factory=list, metadata={"help": "Other schedules beside it: a decay, or warmup:decay."}
    )
    output: str | None = field(default=None, metadata={"help": "A picture's file instead of the terminal."})
    num_training_steps: int | None = field(
        default=None, metadata={"help": "Updates of the run, where --num_train_epochs gives its length."}
    )


# About the machine that trains, which need not be this one.
_MACHINE = ("bf16", "bf16_full_eval", "fp16", "tf32", "deepspeed", "fsdp", "fsdp_config", "torch_compile")


@dataclass
class _Flags(WarmupTrainingArguments):
    def __post_init__(self) -> None:
        defaults = {each.name: each.default for each in fields(TrainingArguments)}
        for name in _MACHINE:
            setattr(self, name, defaults[name])
        self.use_cpu = True
        super().__post_init__()


def main(argv: list[str] | None = None) -> None:
    """The command line: print the table, and draw the curves."""
    with exit_on_user_error(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        # The flags of a training script about its model and data change no learning rate.
        own, args = parse_arguments(HfArgumentParser((PreviewArguments, _Flags)), argv, ignore_foreign=True)
        if own.output is not None and not Path(own.output).parent.is_dir():
            raise ValueError(f"output={own.output!r}: there is no folder {Path(own.output).parent}.")
        preview = preview_schedule(args, own.num_training_steps, own.compare)
        if own.output is not None:
            preview.figure().savefig(own.output)
    for said in dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning)):
        print(f"warning: {said}", file=sys.stderr)
    print(preview.table() if own.output else preview)
    if own.output:
        print(f"\nWrote {Path(own.output)}")


if __name__ == "__main__":
    main()
