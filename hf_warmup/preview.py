"""The learning rate of every update of a run before it is trained, as a table and a picture.

    hf-warmup preview --lr_scheduler_type noam --warmup_steps 4000 --max_steps 100000
    hf-warmup preview --learning_rate 1e-3 --lr_scheduler_type cosine --warmup_type exponential \\
        --warmup_steps 0.02 --max_steps 20000 --compare linear linear:cosine none:noam --output curves.png

The command accepts the flags of a training run, or a file of them followed by flags. It ignores the flags of a training
script about its model and data. `--compare` adds other schedules with otherwise the same flags: a decay, as in
`--lr_scheduler_type linear`, or `warmup:decay`, as in `--warmup_type exponential --lr_scheduler_type cosine`. Without
`--output` the picture is drawn in the terminal.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._validation import check_number
from .cli import WARMUP_FLAGS, describe_field, exit_on_user_error, format_help, parse_arguments


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from .training_args import WarmupArgumentsMixin

MAX_POINTS = 10_000
_MARKS = ("*", "o", "+", "x", "#", "@", "%", "=")


@dataclass(frozen=True, repr=False)
class Curve:
    """One schedule: `lrs[i]` is the effective learning rate of update `updates[i]`, counted from 1."""

    label: str
    updates: list[int]
    lrs: list[float]

    @property
    def peak(self) -> tuple[float, int]:
        """The highest learning rate and the first update that has it."""
        highest = max(self.lrs)
        return highest, self.updates[self.lrs.index(highest)]


@dataclass(frozen=True, repr=False)
class SchedulePreview:
    """Learning-rate curves of a run: text when printed, a picture in a notebook."""

    num_training_steps: int
    curves: list[Curve]

    def table(self) -> str:
        """Return the learning rates of a few updates, and the peak, of each curve."""
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
        """Return the curves drawn in `width` by `height` characters."""
        top = max(curve.peak[0] for curve in self.curves) or 1.0
        canvas = [[" "] * width for _ in range(height)]
        marked = list(zip(self.curves, cycle(_MARKS), strict=False))
        for curve, mark in reversed(marked):  # the first curve is drawn last, over the others
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
            f"{(left, '0')[i > 0] if i in (0, height - 1) else '':>{len(left)}} |" + "".join(row).rstrip()
            for i, row in enumerate(canvas)
        ]
        pad = " " * (len(left) + 1)
        lines.append(f"{pad}+{'-' * width}")
        lines.append(f"{pad} 1{f'update {self.num_training_steps}':>{width - 1}}")
        if len(self.curves) > 1:
            lines += [f"{pad} {mark} {curve.label}" for curve, mark in marked]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Return the curves as a matplotlib figure.

        Raises:
            `ImportError`: If matplotlib is not installed.
        """
        from .report.figures import DASHES, blank_axes, blank_figure, line_style

        figure = blank_figure(8, 3.6)
        axes = blank_axes(figure, "Learning rate before training", "learning rate")
        for i, curve in enumerate(self.curves):
            # Earlier lines are wider, so that they still show where later ones cover them.
            width = 1.6 + 2.4 * (len(self.curves) - 1 - i) / len(self.curves)
            color, dash = line_style(i)
            style: dict[str, Any] = {"color": color, "linestyle": DASHES[dash], "linewidth": width}
            axes.plot(curve.updates, curve.lrs, label=curve.label, **style)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.sketch()}"

    __repr__ = __str__

    def _repr_png_(self) -> bytes | None:
        try:
            from .report.figures import png

            return png(self.figure())
        except ImportError:  # without matplotlib the notebook shows the text
            return None


def preview_schedule(
    args: WarmupArgumentsMixin,
    num_training_steps: int | None = None,
    compare: Sequence[str | WarmupArgumentsMixin] = (),
    *,
    num_hidden_layers: int = 12,
) -> SchedulePreview:
    """Return the learning rate of every update of a run, before it is trained.

    Args:
        args ([`WarmupTrainingArguments`]): The arguments of the run.
        num_training_steps (`int`, *optional*): Updates of the run, by default `args.max_steps`.
        compare (`Sequence`, *optional*): Other schedules: `"decay"` or `"warmup:decay"` with otherwise the same
            arguments, or arguments of another run of the same length.
        num_hidden_layers (`int`, defaults to 12): Blocks of the model. Used only with `layerwise_lr_decay`.

    Returns:
        [`SchedulePreview`]: `print` it, let a notebook show it, or take its `curves`. With `layerwise_lr_decay` or
        `learning_rate_mapping` there is one curve for each learning rate of `args`.

    Raises:
        `ValueError`: If the length of the run is unknown, or a schedule is invalid.

    Example:

    ```python
    >>> from hf_warmup import WarmupTrainingArguments
    >>> args = WarmupTrainingArguments("runs/a", max_steps=16, warmup_steps=4, lr_scheduler_type="noam", learning_rate=0.1)
    >>> print(preview_schedule(args, compare=["exponential:linear"]).table())
    lr at update                        1       4       8      12       16    peak  at update
    noam, warmup 4                  0.025     0.1  0.0707  0.0577     0.05     0.1          4
    exponential:linear, warmup 4  0.0221  0.0632  0.0648  0.0396  0.00818  0.0713          5

    ```
    """  # noqa: E501
    if num_training_steps is None:
        if args.max_steps <= 0:
            raise ValueError(
                "The length of the run is unknown: the number of updates in num_train_epochs="
                f"{args.num_train_epochs:g} depends on the data. Set max_steps or num_training_steps."
            )
        num_training_steps = args.max_steps
    T = check_number("num_training_steps", num_training_steps, 1, integer=True)
    entries = [args, *(_replaced(args, each) if isinstance(each, str) else each for each in compare)]
    return SchedulePreview(T, [curve for each in entries for curve in _curves(each, T, num_hidden_layers)])


def _replaced(args: WarmupArgumentsMixin, entry: str) -> WarmupArgumentsMixin:
    """Return `args` with the schedule that `entry` names, and those of its keywords that the schedule has."""
    from .schedules import schedule_keywords

    warmup_type, name = _split(entry)
    args = copy(args)
    args.lr_scheduler_type = name
    args.warmup_type = warmup_type or args.warmup_type
    decay, warmup = schedule_keywords(name, args.schedule_warmup_type)
    args.lr_scheduler_kwargs = {key: value for key, value in args.lr_scheduler_kwargs.items() if key in decay | warmup}
    args.check_warmup_arguments()
    return args


def _split(entry: str) -> tuple[str | None, str]:
    """Return the warmup and the decay of `"decay"` or `"warmup:decay"`, where each may be an import path."""
    from .schedules import WARMUPS, schedule_names

    parts = entry.split(":")
    if len(parts) > 1 and parts[0] in (*WARMUPS, "auto"):
        cut = 1
    else:
        cut = max(0, len(parts) - (1 if parts[-1] in schedule_names() else 2))
    return ":".join(parts[:cut]) or None, ":".join(parts[cut:])


def _curves(args: WarmupArgumentsMixin, num_training_steps: int, num_hidden_layers: int) -> list[Curve]:
    """Return one curve for each parameter group that differs in its learning rate."""
    from .optim.parameter_groups import learning_rates

    args, rates = copy(args), {"": args.learning_rate}
    if args.layerwise_lr_decay is not None:
        blocks = [f"block.{i}" for i in range(num_hidden_layers)]
        names = ["embeddings", *(f"{block}.weight" for block in blocks), "head"]
        by_name = learning_rates(names, args.learning_rate, layerwise_lr_decay=args.layerwise_lr_decay)
        rates = {f", {name.removesuffix('.weight')}": rate for name, rate in reversed(by_name.items())}
    rates |= {f", {pattern}": rate for pattern, rate in args.learning_rate_mapping.items()}
    args.layerwise_lr_decay, args.learning_rate_mapping = None, {}
    curves = []
    for suffix, args.learning_rate in rates.items():
        curve = _curve(args, num_training_steps)
        curves.append(Curve(curve.label + suffix, curve.updates, curve.lrs))
    return curves


def _curve(args: WarmupArgumentsMixin, num_training_steps: int) -> Curve:
    from torch import nn

    from .trainer import create_optimizer_and_scheduler

    try:
        optimizer, scheduler = create_optimizer_and_scheduler(nn.Linear(1, 1), args, num_training_steps)
    except ImportError:  # the package of the optimizer is not installed here; the schedule is that of AdamW
        args = copy(args)
        args.optim, args.optim_args = "adamw", None
        optimizer, scheduler = create_optimizer_and_scheduler(nn.Linear(1, 1), args, num_training_steps)
    num_warmup_steps = args.get_warmup_steps(num_training_steps)
    T, stride = num_training_steps, -(-num_training_steps // MAX_POINTS)
    corners = {1, num_warmup_steps, num_warmup_steps + 1, *(T * quarter // 4 for quarter in (1, 2, 3)), T}
    updates = sorted({*range(1, T + 1, stride), *(update for update in corners if 1 <= update <= T)})
    lr = _effective_lr(optimizer, scheduler)
    return Curve(_label(args, num_warmup_steps), updates, [lr(update) for update in updates])


def _label(args: WarmupArgumentsMixin, num_warmup_steps: int) -> str:
    from .schedules import METRIC_SCHEDULERS

    name, optim = args.lr_scheduler_type.value, args.optim.value
    label = name if args.warmup_type is None else f"{args.warmup_type}:{name}"
    label += f", warmup {num_warmup_steps}" if num_warmup_steps else ""
    label += f", {optim}" if optim in ("radam", "adam_warmup") else ""
    label += ", until the guard rewinds" if args.guard_action == "rewind" else ""
    return label + (", until its metric acts" if name in METRIC_SCHEDULERS else "")


def _effective_lr(optimizer: Optimizer, scheduler: LRScheduler) -> Callable[[int], float]:
    """Return the learning rate of update t: that of the schedule, times the optimizer's own warmup if it has one."""
    group = optimizer.param_groups[0]

    def scheduled(t: int) -> float:
        if hasattr(scheduler, "lr_lambdas"):
            return scheduler.base_lrs[0] * scheduler.lr_lambdas[0](t - 1)
        if hasattr(scheduler, "warmups"):  # the warmup of a schedule that follows a metric
            return scheduler.base_lrs[0] * scheduler.warmups[0](t - 1)
        return group["lr"]

    if not hasattr(optimizer, "effective_lr"):
        return scheduled
    return lambda t: optimizer.effective_lr({**group, "lr": scheduled(t)}, t)


@dataclass
class PreviewArguments:
    """What to draw."""

    compare: list[str] = field(
        default_factory=list, metadata={"help": "Other schedules to draw: decays, or warmup:decay."}
    )
    output: str | None = field(default=None, metadata={"help": "Write a picture to this file."})
    num_training_steps: int | None = field(
        default=None, metadata={"help": "Updates of the run, if --num_train_epochs gives its length."}
    )
    num_hidden_layers: int = field(default=12, metadata={"help": "Blocks of the model, for --layerwise_lr_decay."})


# Arguments about the machine that trains, which need not be this one.
_MACHINE = ("bf16", "bf16_full_eval", "fp16", "tf32", "deepspeed", "fsdp", "fsdp_config", "torch_compile")
_COMMON = "learning_rate, max_steps, num_train_epochs, adam_beta2 and all other training arguments"


def _help(prog: str) -> str:
    """Return the help without transformers' arguments: importing transformers would take seconds."""
    groups = {
        "What to draw": {each.name: describe_field(each) for each in fields(PreviewArguments)},
        "Arguments of hf_warmup": WARMUP_FLAGS,
        "More": {"help-all": f"List {_COMMON} of transformers as well."},
    }
    return format_help(prog, __doc__, groups)


@exit_on_user_error()
def main(argv: Sequence[str] | None = None, prog: str = "python -m hf_warmup.preview") -> None:
    """Run the command: print the table, and draw the curves."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(_help(prog))
        return
    from transformers import HfArgumentParser, TrainingArguments

    from .training_args import WarmupTrainingArguments

    @dataclass
    class PreviewedArguments(WarmupTrainingArguments):
        def __post_init__(self) -> None:
            for each in fields(TrainingArguments):
                if each.name in _MACHINE:
                    setattr(self, each.name, each.default)
            self.use_cpu = True
            super().__post_init__()

    parser = HfArgumentParser((PreviewArguments, PreviewedArguments), prog=prog, description=__doc__)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        own, args = parse_arguments(parser, argv, ignore_foreign=True)
        preview = preview_schedule(args, own.num_training_steps, own.compare, num_hidden_layers=own.num_hidden_layers)
        if own.output is not None:
            preview.figure().savefig(own.output)
    for text in dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning)):
        print(f"warning: {text}", file=sys.stderr)
    print(preview.table() if own.output else preview)
    if own.output:
        print(f"\nWrote {Path(own.output)}")


if __name__ == "__main__":
    main()
