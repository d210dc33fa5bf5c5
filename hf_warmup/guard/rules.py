"""One table of rules about a run, used by the live guard and by the report.

Each rule is a function of columns of numbers: the recorded gradient norms and the training log. The live guard passes
the most recent records and the report passes the whole run, so the same numbers get the same verdict.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import inf, isfinite, log, nan
from statistics import mean, median
from typing import Any, NamedTuple

from ..norms.grouping import find_stacks
from ..report.run import describe_gaps
from ..report.schedule import LoggedSchedule, find_decay_end, planned_warmup, read_schedule, untuned_length
from ..schedules.warmups import LEFT_BY_RADAM, describe_rectification


WINDOW = 5  # consecutive records whose median is taken, so that one odd batch makes no finding
# Last over first block's gradient norm. 30 lies near the middle, in logarithms, of the highest ratio of a run that
# learned (9.3) and the lowest of a run that failed (118).
DANGER_RATIO = 30.0
NOAM_PEAK = (1e-5, 1e-2)
PAST = (25, 128)  # fewest and most records that a spike is compared with
AS_GOOD = 0.01  # share by which a metric may lie below its best and be called as good
LONG_ENOUGH = 100  # updates after which a flat loss means something

ADAM = ("adam", "adamw", "adam_warmup", "adamw_torch", "adamw_torch_fused", "adamw_hf", "nadam")
SCHEDULES_FROM_ZERO = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup", "inverse_sqrt")
RESTARTING_SCHEDULES = ("cosine_with_restarts", "greedy", "reduce_lr_on_plateau")
# Model types whose configuration does not say that they are Post-LN.
POST_LN = ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta")
# Logs of preference and reinforcement learning, where the value of the loss says nothing about progress.
REWARD_KEYS = re.compile(r"(eval_)?(rewards?($|/|_)|kl$|completions?(/|_)|objective/)")

Series = tuple[Sequence[int], Sequence[float]]


@dataclass(frozen=True)
class Records:
    """Columns that rules read. A column that was not recorded is empty; a norm that is missing is `nan`.

    Args:
        steps (`Sequence[int]`): Updates, counted from 1, whose gradient norms were recorded.
        norms (`Mapping[str, Sequence[float]]`): Layer -> its gradient norm at each of `steps`.
        nonfinite (`Mapping[int, Sequence[str]]`): Update -> layers whose gradient was not finite.
        log (`Mapping[str, Series]`): Key of the training log -> updates and values. `grad_norm` is the norm of the
            whole gradient before clipping, recorded or logged.
        settings (`Mapping[str, Any]`): Training arguments and model configuration, by their own names.
        num_training_steps (`int`, *optional*): Planned updates.
        updates (`int`): Last update that anything is known of.
        metric (`tuple[str, bool]`, *optional*): The key of the evaluation metric that the task is about, other than the
            loss, and whether higher is better.
        ended (`bool`): Whether the run is over; `False` for a checkpoint and for a run that is still training.
        start (`int`): Update from which the columns begin: 0, or the update after which the run was rewound last.
        judged (`int`): Update up to which the live guard has judged before.
        rewinds (`Series`): Updates after which the run was rewound, and the updates of warmup from there.
        gaps (`Sequence[tuple[int, int]]`): First and last update of each gap in the recorded gradient norms.
    """

    steps: Sequence[int] = ()
    norms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    nonfinite: Mapping[int, Sequence[str]] = field(default_factory=dict)
    log: Mapping[str, Series] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_training_steps: int | None = None
    updates: int = 0
    metric: tuple[str, bool] | None = None
    ended: bool = False
    start: int = 0
    judged: int = 0
    rewinds: Series = ((), ())
    gaps: Sequence[tuple[int, int]] = ()

    def series(self, key: str) -> Series:
        """Return updates and finite values of a log key."""
        steps, values = self.log.get(key, ((), ()))
        known = [(step, value) for step, value in zip(steps, values, strict=True) if isfinite(value)]
        return [step for step, _ in known], [value for _, value in known]

    def setting(self, key: str) -> float | None:
        """Return a setting that is a number; `None` for any other, such as `"auto"`."""
        value = self.settings.get(key)
        return value if isinstance(value, (int, float)) else None

    @cached_property
    def stacks(self) -> dict[str, list[str]]:
        """Prefix -> recorded blocks of equal shapes, from first to last."""
        return find_stacks(self.norms, self.settings.get("growing_stacks") or ())

    @cached_property
    def ratios(self) -> dict[str, Series]:
        """Stack of numbered blocks -> updates and its last block's gradient norm over its first block's.

        A first block whose norm is exactly 0 gives an infinite ratio.
        """
        found = {}
        for stack, blocks in self.stacks.items():
            pairs = zip(self.steps, self.norms[blocks[0]], self.norms[blocks[-1]], strict=True)
            known = [(step, first, last) for step, first, last in pairs if isfinite(first) and isfinite(last) and last]
            found[stack] = (
                [step for step, _, _ in known],
                [last / first if first else inf for _, first, last in known],
            )
        return {stack: series for stack, series in found.items() if series[0]}

    @cached_property
    def schedule(self) -> LoggedSchedule:
        """The schedule as the logged rates show it."""
        return read_schedule(*self.series("learning_rate"), self.num_training_steps)

    @property
    def judged_by_loss(self) -> bool:
        """Whether the loss measures progress, which it does not in preference and reinforcement learning."""
        return not any(map(REWARD_KEYS.match, self.log))

    @property
    def warmup_length(self) -> int | None:
        """Updates of warmup after the last rewind, else as the settings ask for; `None` if they do not say."""
        rewound = self.rewinds[1]
        return int(rewound[-1]) if rewound else planned_warmup(self.settings, self.num_training_steps)

    @property
    def untuned_length(self) -> int | None:
        """Updates of warmup that Adam's beta2 asks for, 2 / (1 - beta2); `None` for other optimizers."""
        return untuned_length(self.settings) if self.settings.get("optim") in ADAM else None

    @property
    def is_post_ln(self) -> bool:
        """Whether the model normalises after each residual addition."""
        placement = self.settings.get("norm_placement")
        return placement == "post" if placement else self.settings.get("model_type") in POST_LN

    @property
    def can_be_pre_ln(self) -> bool:
        """Whether `BertPreLN*` could replace the model: a BERT trained from scratch."""
        model_type = str(self.settings.get("model_type", "bert" if self.settings.get("norm_placement") else ""))
        return self.is_post_ln and model_type in ("bert", "bert-pre-ln") and not self.settings.get("_name_or_path")


class Verdict(NamedTuple):
    """What a rule says about a run: a sentence, its numbers by name, the layer it is about, and what to change."""

    text: str
    numbers: dict[str, float]
    advice: str = ""
    layer: str | None = None


@dataclass(frozen=True)
class Rule:
    """A row of the table: the condition, its threshold, where it comes from, and the columns it needs.

    `check(records, threshold)` returns a [`Verdict`], or `None` if the condition does not hold. `needs` names columns:
    `norms`, `blocks`, `settings` or keys of the log; one of alternatives separated by `|` is enough. A rule with
    `is_problem` is about a run that goes wrong. The live guard asks rules with `live`, which need no finished run, and
    stops or rewinds the run for a rule with `acts`.
    """

    name: str
    is_problem: bool
    condition: str
    threshold: float
    source: str
    check: Callable[[Records, float], Verdict | None]
    needs: tuple[str, ...] = ()
    live: bool = False
    acts: bool = False

    def missing(self, records: Records) -> list[str]:
        """Return the needed columns that `records` lacks."""
        present = {key for key, (steps, _) in records.log.items() if steps}
        present |= {"norms"} if records.norms else set()
        present |= {"blocks"} if records.ratios else set()
        present |= {"settings"} if records.settings else set()
        return [need for need in self.needs if not present & set(need.split("|"))]


def smooth(values: Sequence[float], width: int = WINDOW) -> list[float]:
    """Return the median of every `width` consecutive values, or of all values if there are fewer.

    Example:

    ```python
    >>> smooth([1.0, 1.0, 900.0, 1.0, 1.0, 2.0])
    [1.0, 1.0]

    ```
    """
    width = min(width, len(values))
    return [median(values[i : i + width]) for i in range(len(values) - width + 1)] if width else []


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _ends(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Return the first tenth and the last tenth of `values`, the latter of at least three."""
    return values[: max(1, len(values) // 10)], values[-max(3, len(values) // 10) :]


_CHECK_DATA = (
    "Check labels and learning rate. Only recorded norms of the layers show whether a warmup would have helped."
)
_LOWER_RATE = "Lower the learning rate or lengthen the warmup."

# The rules, in the order of the table.


def check_stalling(records: Records, threshold: float) -> Verdict | None:
    worst: tuple[float, str, list[float], int] | None = None
    for stack, (steps, ratios) in records.ratios.items():
        # A ratio that is high before the first update is a property of the model, such as ConvNeXt's layer scale.
        if steps[0] == records.start + 1 and ratios[0] > threshold:
            continue
        smoothed = smooth(ratios)
        at = max(range(len(smoothed)), key=smoothed.__getitem__)
        if smoothed[at] > threshold and (worst is None or smoothed[at] > worst[0]):
            worst = smoothed[at], stack, smoothed, at
    if worst is None:
        return None
    ratio, stack, smoothed, at = worst
    steps, ratios = records.ratios[stack]
    middle = min(WINDOW, len(ratios)) // 2
    above = [steps[i + middle] for i, value in enumerate(smoothed) if value > threshold]
    begins, update = above[0], steps[at + middle]
    log_steps, losses = records.series("loss")
    onset = bisect_left(log_steps, begins)
    if records.judged_by_loss and 0 < onset < len(losses) and losses[-1] < 0.5 * losses[onset - 1]:
        return None  # the loss has halved since: the layers learn
    blocks = records.stacks[stack]
    size = f"{ratio:,.0f} times smaller than" if isfinite(ratio) else "exactly 0, unlike"
    share = sum(value > threshold for value in ratios) / len(ratios)
    state = f"The run stalled until update {above[-1]}." if smoothed[-1] <= threshold else "The run is stalling."
    text = (
        f"The gradient of {blocks[0]} is {size} the gradient of {blocks[-1]} at update {update} (more than "
        f"{threshold:g} times smaller from update {begins} on, in {percent(share)} of the recorded updates). {state}"
    )
    numbers = {"ratio": ratio, "update": update, "first": begins, "share": share}
    return Verdict(text, numbers, warmup_advice(records, begins), blocks[0])


def warmup_advice(records: Records, update: int) -> str:
    """Return what to change in a run that a longer warmup would have helped."""
    asked, had = records.untuned_length, records.warmup_length
    options = []
    if not had:
        fits = asked and asked <= (records.num_training_steps or records.updates)
        options.append(f"warm up for about {asked} updates (2 / (1 - beta2))" if fits else "warm up")
    if records.settings.get("optim", "adamw") in ADAM:
        options.append("use RAdam")
    if records.can_be_pre_ln:
        options.append("use Pre-LN")
    if had or not options:
        options.append("lower the learning rate")
    *others, final = options
    text = f"{', '.join(others)} or {final}" if others else final
    if had:
        text += f" (the warmup took {had} updates, the stall began at {update})"
    elif not final.startswith("lower"):
        text += "; lower the learning rate if that is not enough"
    return f"{text[0].upper()}{text[1:]}."


def check_nonfinite_gradients(records: Records, threshold: float) -> Verdict | None:
    bad, count = sorted(records.nonfinite), len(records.steps)
    # fp16 finds its loss scale by overflowing now and then; those updates are skipped.
    if not bad or len(bad) / count <= (threshold if records.settings.get("fp16") else 0.0):
        return None
    layers = records.nonfinite[bad[0]]
    text = (
        f"The gradient was not finite in {len(bad)} of {count} recorded updates ({percent(len(bad) / count)}), first "
        f"at update {bad[0]} in {', '.join(layers[:3])}."
    )
    numbers = {"updates": len(bad), "first": bad[0], "update": bad[0], "share": len(bad) / count}
    return Verdict(text, numbers, "Lower the learning rate, clip gradients, or train in bf16 or fp32.", layers[0])


def check_nonfinite_in_a_row(records: Records, threshold: float) -> Verdict | None:
    # At its start fp16 training may skip many updates in a row, until the loss scale fits.
    limit = threshold * (4 if records.settings.get("fp16") else 1)
    count = 0
    for step in records.steps:
        count = count + 1 if step in records.nonfinite else 0
        if count >= limit:
            layers = records.nonfinite[step]
            text = (
                f"The gradient was not finite in {count} recorded updates in a row, up to update {step}, in "
                f"{', '.join(layers[:3])}."
            )
            return Verdict(text, {"update": step, "in_a_row": count}, _LOWER_RATE, layers[0])
    return None


def check_nonfinite_loss(records: Records, threshold: float) -> Verdict | None:
    steps, losses = records.log.get("loss", ((), ()))
    norms = dict(zip(*records.log.get("grad_norm", ((), ())), strict=True)) | dict.fromkeys(records.nonfinite, nan)
    lost = [step for step, loss in zip(steps, losses, strict=True) if not isfinite(loss)]
    hidden = list(records.log.get("nonfinite_losses", ((), ()))[0])
    # transformers logs 0 for a loss that is not finite (`logging_nan_inf_filter`).
    collapsed = [s for s, loss in zip(steps, losses, strict=True) if loss == 0 and not isfinite(norms.get(s, 0.0))]
    if not (lost or hidden or len(collapsed) > threshold):
        return None
    update = min([*lost, *hidden, *collapsed])
    what = "was not finite" if lost or hidden else "is logged as 0 while the gradient norm is not finite"
    text = f"The training loss {what} from update {update} on: the run diverged."
    return Verdict(
        text, {"update": update}, "Resume from a checkpoint before it with a lower learning rate or in bf16."
    )


def check_nonfinite_evaluation(records: Records, threshold: float) -> Verdict | None:
    for key, (steps, values) in records.log.items():
        bad = [step for step, value in zip(steps, values, strict=True) if not isfinite(value)]
        if key.startswith("eval_") and len(bad) > threshold:
            text = f"{key} was not finite in {len(bad)} of {len(steps)} evaluations, first at update {bad[0]}."
            advice = "Check the evaluation data for empty labels and the evaluation for overflow in fp16."
            return Verdict(text, {"update": bad[0], "evaluations": len(bad)}, advice)
    return None


def check_nothing_trained(records: Records, threshold: float) -> Verdict | None:
    losses, norms = records.series("loss")[1], records.series("grad_norm")[1]
    if len(losses) < 2 or not norms or max(map(abs, losses)) > threshold or max(norms) > threshold:
        return None
    text = f"Loss and gradient norm are exactly 0 in all {len(losses)} log entries: nothing is trained."
    return Verdict(
        text, {"entries": len(losses)}, "Check that labels are not all masked and that parameters are trainable."
    )


def check_loss_rises(records: Records, threshold: float) -> Verdict | None:
    steps, losses = records.series("loss")
    if not records.judged_by_loss or len(losses) < 5:
        return None
    first, last = _ends(losses)
    # A jump that stays: every later loss is above the highest of the records before it.
    lowest_after = list(accumulate(reversed(losses), min))[::-1]
    for i in range(1, len(losses) - len(last) + 1):
        before = max(losses[max(0, i - WINDOW) : i])
        if before > 0 and lowest_after[i] > max(threshold * before, losses[i] / 2):
            text = (
                f"The training loss rises from {losses[i - 1]:.3g} to {losses[i]:.3g} at update {steps[i]} and stays "
                f"above {lowest_after[i]:.3g}: the run diverges."
            )
            return Verdict(text, {"update": steps[i], "before": before, "after": lowest_after[i]}, _LOWER_RATE)
    if max(first) > 0 and min(last) > threshold * max(first):
        text = (
            f"The training loss rises from {median(first):.3g} in the first tenth of the log to {median(last):.3g} in "
            f"the last: the run diverges."
        )
        return Verdict(text, {"update": steps[-1], "before": median(first), "after": median(last)}, _LOWER_RATE)
    return None


def check_loss_is_lost(records: Records, threshold: float) -> Verdict | None:
    steps, losses = records.series("loss")
    if not records.judged_by_loss or len(losses) < 2 * WINDOW - 1:
        return None
    # Tenths of a long log: single batches of a noisy one differ by more than the fall.
    width = max(WINDOW, len(losses) // 10)
    smoothed = smooth(losses, width)
    best, begun, now = min(smoothed), losses[0], smoothed[-1]
    # Skip runs that never made progress.
    if begun - best <= 0.1 * abs(begun) or (lost := (now - best) / (begun - best)) <= threshold:
        return None
    at = steps[smoothed.index(best) + width // 2]
    text = (
        f"The training loss fell from {begun:.3g} to {best:.3g} at update {at} and is back at {now:.3g}: "
        f"{percent(lost)} of the fall is lost."
    )
    return Verdict(text, {"update": at, "first": begun, "best": best, "last": now, "lost": lost}, _LOWER_RATE)


def check_flat_loss(records: Records, threshold: float) -> Verdict | None:
    steps, losses = records.series("loss")
    if not records.judged_by_loss or len(losses) < 10 or steps[-1] < LONG_ENOUGH:
        return None
    # Medians of tenths of the log; the first tenth is left out, where a new head falls to the loss of a guess.
    width = len(losses) // 10
    tenths = [median(losses[i : i + width]) for i in range(width, len(losses) - width + 1, width)]
    level, spread = median(tenths), max(tenths) - min(tenths)
    if level <= 0 or spread >= threshold * level:
        return None
    text = (
        f"The training loss is flat at {level:.4g} from update {steps[width]} to {steps[-1]} (it moves by "
        f"{percent(spread / level)}): nothing is learned."
    )
    classes = next(
        (k for k in (records.setting("num_labels"), records.setting("vocab_size"), *range(2, 21))
         if k and k > 1 and abs(log(k) - level) < 0.01 * log(k)), None,
    )  # fmt: skip
    if classes:
        text = f"{text[:-1]}, and ln {classes} = {log(classes):.4g} is the loss of a guess among {classes}."
    advice = warmup_advice(records, steps[width]) if records.norms else _CHECK_DATA
    return Verdict(text, {"update": steps[width], "level": level, "spread": spread / level}, advice)


def check_overfitting(records: Records, threshold: float) -> Verdict | None:
    steps, losses = records.series("eval_loss")
    if len(losses) < 3 or not records.judged_by_loss:
        return None
    best = min(losses)
    if best <= 0 or losses[-1] <= (1 + threshold) * best:
        return None
    at = steps[losses.index(best)]
    text = (
        f"eval_loss was lowest, {best:.4g}, at update {at} and is {percent(losses[-1] / best - 1)} higher, "
        f"{losses[-1]:.4g}, at update {steps[-1]}"
    )
    advice = "Keep the best checkpoint (load_best_model_at_end) or train for fewer epochs."
    key, greater_is_better = records.metric or ("", True)
    updates, values = records.series(key)
    if values:
        peak, last = (max if greater_is_better else min)(values), values[-1]
        as_good = abs(last - peak) <= AS_GOOD * abs(peak)
        text += f"; {key} {'is as good as ever: best' if as_good else 'was best'}, {peak:.4g}, at update "
        text += f"{updates[values.index(peak)]} ({last:.4g} at the end)"
        advice = "" if as_good else advice
    return Verdict(f"{text}.", {"update": at, "best": best, "last": losses[-1]}, advice)


def check_spike(records: Records, threshold: float) -> Verdict | None:
    # Each record is compared with its own past, and a loss counts only if the gradient norm left its range as well.
    steps, losses = records.series("loss")
    if not records.judged_by_loss:
        return None
    for i in range(max(PAST[0], bisect_right(steps, records.judged)), len(losses)):
        past = losses[max(0, i - PAST[1]) : i]
        if losses[i] <= max(1.1 * median(past), *past[-PAST[0] :]) or _deviations(losses[i], past) <= threshold:
            continue
        span = steps[i - 2], steps[i]  # from the log entry before
        score, reached, usual = _peak(records.series("grad_norm"), span)
        if score <= threshold:
            continue
        layers = {layer: _peak((records.steps, norms), span)[0] for layer, norms in records.norms.items()}
        layer = max(layers, key=layers.__getitem__, default=None)
        text = (
            f"Gradient norm and loss spike together at update {steps[i]}: the norm reaches {reached:.3g} (usually "
            f"{usual:.3g}) and the loss {losses[i]:.3g} (usually {median(past):.3g})"
        )
        text += f"; {layer} left its usual range furthest." if layer else "."
        advice = "Clip gradients, or look at the data of this update."
        return Verdict(text, {"update": steps[i], "deviations": score}, advice, layer)
    return None


def _peak(series: Series, span: tuple[int, int]) -> tuple[float, float, float]:
    """Return the deviations, the value and the usual value of the highest record in `span`, against the past."""
    steps, values = series
    begin, end = bisect_right(steps, span[0]), bisect_right(steps, span[1])
    past = [value for value in values[max(0, begin - PAST[1]) : begin] if isfinite(value)]
    if len(past) < PAST[0] or begin == end:
        return 0.0, nan, nan
    highest = max(values[begin:end])
    return _deviations(highest, past), highest, median(past)


def _deviations(value: float, past: Sequence[float]) -> float:
    """Return how many standard deviations `value` is above the median, estimated from the median absolute deviation."""
    middle = median(past)
    spread = 1.4826 * median(abs(each - middle) for each in past)
    return (value - middle) / spread if spread else 0.0


def check_never_left_warmup(records: Records, threshold: float) -> Verdict | None:
    found = records.schedule
    stopped_early = records.updates < (records.num_training_steps or 0)  # inside its warmup, perhaps
    if found.warmup != "never left" or not records.ended or stopped_early:
        return None
    text = (
        f"The learning rate still rises at the end of the log, to {found.peak:.3g} at update {found.last}: the run "
        "never left its warmup."
    )
    advice = "Shorten the warmup; a share of the run (0.1) cannot be longer than it."
    return Verdict(text, {"update": found.last, "rate": found.peak or 0.0}, advice)


def check_long_warmup(records: Records, threshold: float) -> Verdict | None:
    found, planned = records.schedule, records.num_training_steps
    # A curve such as the untuned exponential approaches its peak without an end that rates could show.
    length = records.warmup_length or (found.length if found.by != "rising" else None)
    if found.warmup != "seen" or not planned or not length or length <= threshold * planned:
        return None
    text = f"The warmup takes about {length} of {planned} updates ({percent(length / planned)})."
    return Verdict(text, {"update": length, "share": length / planned}, "A tenth of the run or less is usual.")


def check_schedule_restarts(records: Records, threshold: float) -> Verdict | None:
    restarts_by_design = records.settings.get("lr_scheduler_type") in RESTARTING_SCHEDULES or records.rewinds[0]
    restarts = records.schedule.restarts
    if restarts_by_design or len(restarts) <= threshold:
        return None
    where = ", ".join(map(str, restarts[:3])) + (" and later" if restarts[3:] else "")
    text = f"The learning rate rises again after it had fallen: the schedule restarts at update {where}"
    steps, losses = records.series("loss")
    at = bisect_left(steps, restarts[0])
    before, after = losses[max(0, at - 1) : at], losses[at : at + WINDOW]
    if before and after and max(after) > 1.5 * before[0] > 0:
        text += f", and the training loss jumps from {before[0]:.3g} to {max(after):.3g}"
    advice = (
        "A run resumed with more epochs follows a new schedule; use warmup_type and the final length from the start."
    )
    return Verdict(f"{text}.", {"update": restarts[0], "restarts": len(restarts)}, advice)


def check_skipped_updates(records: Records, threshold: float) -> Verdict | None:
    steps, norms = records.log.get("grad_norm", ((), ()))
    bad = [step for step, norm in zip(steps, norms, strict=True) if not isfinite(norm)]
    if records.norms or not 0 < len(bad) <= threshold * len(steps):
        return None
    text = f"The logged gradient norm was not finite in {len(bad)} of {len(steps)} entries, first at update {bad[0]}"
    rates = dict(zip(*records.series("learning_rate"), strict=True))
    order = sorted(rates)
    stood = [s for s in bad if s in rates and (i := order.index(s)) and rates[order[i - 1]] == rates[s]]
    text += ". fp16 training skips such updates" + ("; the learning rate did not move there." if stood else ".")
    return Verdict(text, {"update": bad[0], "entries": len(bad)})


def check_norm_at_loss_scale(records: Records, threshold: float) -> Verdict | None:
    steps, norms = records.series("grad_norm")
    if records.norms or not norms or median(norms) <= threshold:
        return None
    text = (
        f"The logged gradient norm is {median(norms):,.0f} in the median: it was logged at the fp16 loss scale, before "
        "unscaling."
    )
    return Verdict(text, {"update": steps[0], "norm": median(norms)}, "Do not read it as a gradient norm.")


def check_noam_peak(records: Records, threshold: float) -> Verdict | None:
    steps, rates = records.series("learning_rate")
    peak = max(rates, default=threshold)
    if records.settings.get("lr_scheduler_type") != "noam" or threshold <= peak <= NOAM_PEAK[1]:
        return None
    text = f"Noam peaked at a learning rate of {peak:.3g}, outside [{threshold:g}, {NOAM_PEAK[1]:g}]."
    advice = "With d_model the learning rate is the paper's factor (1 or 2), without it the peak itself."
    return Verdict(text, {"peak": peak, "update": steps[rates.index(peak)]}, advice)


def check_short_warmup(records: Records, threshold: float) -> Verdict | None:
    asked, had = records.untuned_length, records.warmup_length
    if asked is None or had is None or had >= threshold * asked or not records.is_post_ln:
        return None
    if check_stalling(records, DANGER_RATIO):  # its advice states the length
        return None
    at = f"at beta2 = {records.settings['adam_beta2']:g}"
    text = f"The run has no warmup, where 2 / (1 - beta2) = {asked} updates are usual {at}."
    if had:
        text = f"A warmup of {had} updates is {percent(had / asked)} of the usual 2 / (1 - beta2) = {asked} {at}."
    ratios = [ratio for _, values in records.ratios.values() for ratio in smooth(values)]
    if ratios:
        text += (
            f" The recorded norms show no need of more at this learning rate (last/first-block ratio at most "
            f"{max(ratios):.2g}, limit {DANGER_RATIO:g}); a higher rate may need it."
        )
    return Verdict(text, {"warmup": had, "asked": asked, "share": had / asked})


def check_clipping(records: Records, threshold: float) -> Verdict | None:
    limit, norms = records.setting("max_grad_norm"), records.series("grad_norm")[1]
    if not limit or not norms or (share := sum(norm > limit for norm in norms) / len(norms)) <= threshold:
        return None
    text = (
        f"Clipping was active in {percent(share)} of the recorded updates: max_grad_norm = {limit:g} is "
        f"{limit / mean(norms):.2g} times the mean norm of {mean(norms):.3g}."
    )
    return Verdict(text, {"share": share, "mean": mean(norms), "limit": limit}, "Half to ten times the mean is usual.")


def check_wasted_update(records: Records, threshold: float) -> Verdict | None:
    settings, (steps, rates) = records.settings, records.series("learning_rate")
    if settings.get("optim") == "radam":  # which takes no step before update 6, whatever the schedule
        return None
    logged = bool(rates) and steps[0] == 1 and rates[0] <= threshold < max(rates)
    from_zero = settings.get("warmup_type", "") is None and settings.get("lr_scheduler_type") in SCHEDULES_FROM_ZERO
    if not logged and not (from_zero and settings.get("optim") != "adam_warmup" and records.warmup_length):
        return None
    text = "The first update had learning rate 0 and changed nothing."
    return Verdict(text, {"update": 1, "learning_rate": 0.0}, "warmup_type='linear' starts at lr / W instead.")


def check_rectification(records: Records, threshold: float) -> Verdict | None:
    (steps, used), (_, scheduled) = records.series("effective_learning_rate"), records.series("learning_rate")
    if records.settings.get("optim") != "radam" or not used or not scheduled:
        return None
    share = max(used) / max(*scheduled, 1e-30)
    if not 0 < share < threshold or not (records.ended or used[-1] < max(used)):  # the peak may be still to come
        return None
    text, advice = describe_rectification(share, float(records.settings.get("adam_beta2", 0.999)))
    return Verdict(text, {"share": share, "update": steps[used.index(max(used))]}, advice)


def check_planned_length(records: Records, threshold: float) -> Verdict | None:
    planned = records.num_training_steps
    if not planned:
        return _check_decay_end(records)
    if not records.ended or records.updates >= threshold * planned:
        return None
    text = f"The run ended at update {records.updates} of {planned} planned"
    rates = records.series("learning_rate")[1]
    if records.schedule.warmup == "never left":
        text += ", inside its warmup"
    elif rates and 0 < rates[-1] < max(rates):
        text += f", where the decay had reached {percent(rates[-1] / max(rates))} of the peak learning rate"
    return Verdict(f"{text}.", {"update": records.updates, "planned": planned})


def _check_decay_end(records: Records) -> Verdict | None:
    """Judge a run whose plan is not known, such as a loop that records only its gradient norms, by its decay."""
    steps, rates = records.series("learning_rate" if "learning_rate" in records.log else "effective_learning_rate")
    if (end := find_decay_end(steps, rates)) is None:
        return None
    share = percent(rates[-1] / max(rates))
    text = f"The rate is {share} of its peak at the last update, {steps[-1]}: the decay was planned to end at {end}."
    advice = "If the run has ended, num_training_steps was too high. Count it after accelerator.prepare."
    return Verdict(text, {"update": steps[-1], "planned": end}, advice)


def check_rewinds(records: Records, threshold: float) -> Verdict | None:
    steps, lengths = records.rewinds
    if len(steps) <= threshold:
        return None
    when = ", ".join(map(str, steps))
    text = f"The guard rewound the run after update {when}; the last warmup takes {lengths[-1]:.0f} updates."
    return Verdict(
        text, {"rewinds": len(steps), "warmup": lengths[-1]}, "Start with this warmup to save the lost updates."
    )


def check_num_processes(records: Records, threshold: float) -> Verdict | None:
    (steps, now), (_, before) = records.series("num_processes"), records.series("former_num_processes")
    if len(steps) <= threshold:
        return None
    changes = [f"{a:.0f} to {b:.0f} after update {step}" for step, a, b in zip(steps, before, now, strict=True)]
    return Verdict(f"The number of processes changed from {', and from '.join(changes)}.", {"update": steps[0]})


def check_recording(records: Records, threshold: float) -> Verdict | None:
    if len(records.gaps) <= threshold:
        return None
    return Verdict(f"The recording lacks {describe_gaps(records.gaps)}.", {"update": records.gaps[0][0]})


def check_reward_log(records: Records, threshold: float) -> Verdict | None:
    if records.judged_by_loss:
        return None
    shown = [
        key for key in records.log if re.match(r"rewards?($|/accuracies|/margins)|kl$|objective/(kl|.*reward)", key)
    ]
    ends = [f"{key} {values[0]:.3g} to {values[-1]:.3g}" for key in shown if (values := records.series(key)[1])]
    text = "A log of preference or reinforcement learning is not judged by its loss"
    return Verdict(f"{text}{': ' if ends else ''}{', '.join(ends)}.", {})


def check_little_logged(records: Records, threshold: float) -> Verdict | None:
    count = len(records.log.get("loss", ((), ()))[0])
    if count >= threshold or records.norms:
        return None
    losses = f"{count} training losses were" if count > 1 else "1 training loss was"
    what = f"Only {losses} logged" if count else "No training loss was logged"
    return Verdict(f"{what}: too little to judge the run by.", {"losses": count}, "Set logging_steps=1 or 10.")


DEMO = "49 recorded runs of the demo and of SST-2"
CHECKPOINTS = "hf_warmup.checkpoints"
LOGS = "79 logs of public runs"
RULES = (
    Rule(
        "stalling", True, f"last over first block's gradient norm, median of {WINDOW} records, above (the first update "
        "at most that)", DANGER_RATIO, f"{DEMO}: failed 118 and more, learned 9.3 and less; Xiong et al. 2020",
        check_stalling, ("blocks",), live=True, acts=True,
    ),
    Rule(
        "gradient not finite", True, "share of updates with a gradient that is not finite above (fp16; otherwise any)",
        0.01, "Micikevicius et al. 2018: loss scaling skips fewer than 1 % of updates", check_nonfinite_gradients,
        ("norms",), live=True,
    ),
    Rule(
        "no finite gradient", True, "recorded updates in a row with a gradient that is not finite, at least (with fp16 "
        "four times that)", WINDOW, "by definition", check_nonfinite_in_a_row, ("norms",), live=True, acts=True,
    ),
    Rule(
        "loss not finite", True, "log entries with a loss of 0 whose gradient norm is not finite, more than", 1,
        "transformers' logging_nan_inf_filter", check_nonfinite_loss, ("loss",), live=True,
    ),
    Rule(
        "evaluation not finite", True, "evaluations whose value is not finite, more than", 0, "by definition",
        check_nonfinite_evaluation, ("eval_loss",), live=True,
    ),
    Rule(
        "nothing trained", True, "every loss and gradient norm at most", 0.0, "by definition", check_nothing_trained,
        ("loss", "grad_norm"), live=True,
    ),
    Rule(
        "loss rises", True, "every later training loss over the highest of the records before it, or the lowest of the "
        "last tenth over the highest of the first, above", 1.5, LOGS, check_loss_rises, ("loss",),
    ),
    Rule(
        "loss is lost", True, "share of the fall of the training loss lost again above", 0.5,
        f"{DEMO}: fell back 0.77 and more, learned 0.22 and less", check_loss_is_lost, ("loss",), live=True,
    ),
    Rule(
        "flat loss", True, f"spread of the loss between tenths of a log of {LONG_ENOUGH} updates or more, without the "
        "first tenth, below", 0.02, LOGS, check_flat_loss, ("loss",),
    ),
    Rule(
        "Noam's peak", True, f"Noam's highest learning rate above {NOAM_PEAK[1]:g} or below", NOAM_PEAK[0],
        "Vaswani et al. 2017: 7e-4", check_noam_peak, ("learning_rate",),
    ),
    Rule(
        "overfitting", False, "share that the last evaluation loss is above the lowest, more than", 0.1, LOGS,
        check_overfitting, ("eval_loss",),
    ),
    Rule(
        "spike", False, "standard deviations of loss and gradient norm above the last 128 records, more than", 6.0,
        "OLMo-core, levanter", check_spike, ("loss", "norms|grad_norm"), live=True,
    ),
    Rule(
        "never left the warmup", False, "learning rate at the end rises by more than", 0.0, "by definition",
        check_never_left_warmup, ("learning_rate",),
    ),
    Rule(
        "long warmup", False, "share of the run that the warmup takes, above", 0.25, LOGS, check_long_warmup,
        ("learning_rate",),
    ),
    Rule(
        "schedule restarts", False, "times that the learning rate rises after a fall, more than", 0, LOGS,
        check_schedule_restarts, ("learning_rate",),
    ),
    Rule(
        "skipped updates", False, "share of log entries whose gradient norm is not finite, at most", 0.5, LOGS,
        check_skipped_updates, ("grad_norm",),
    ),
    Rule(
        "norm at the loss scale", False, "median of the logged gradient norm above", 1e4, LOGS,
        check_norm_at_loss_scale, ("grad_norm",),
    ),
    Rule(
        "short warmup", False, "share of 2 / (1 - beta2) updates that Adam's warmup has, below (Post-LN)", 0.5,
        "Ma & Yarats 2019, arXiv 1910.04209", check_short_warmup, ("settings",),
    ),
    Rule(
        "clipping", False, "share of updates whose norm is above max_grad_norm, above", 0.5,
        "Pascanu et al. 2013, §3.2: half to ten times the mean norm", check_clipping, ("norms|grad_norm", "settings"),
    ),
    Rule("wasted update", False, "first learning rate at most", 0.0, "transformers #34754", check_wasted_update),
    Rule(
        "rectification", False, "highest effective learning rate over the schedule's with RAdam, below", LEFT_BY_RADAM,
        "Liu et al. 2020: r_t", check_rectification, ("settings",),
    ),
    Rule("planned length", False, "share of the planned updates taken, below", 1.0, "max_steps", check_planned_length),
    Rule("rewound", False, "rewinds by the guard, more than", 0, "hf_warmup.guard", check_rewinds),
    Rule("number of processes", False, "changes of it, more than", 0, CHECKPOINTS, check_num_processes),
    Rule("incomplete recording", False, "gaps in the recorded updates, more than", 0, CHECKPOINTS, check_recording),
    Rule("reward log", False, "logged keys such as reward or kl, more than", 0, "TRL", check_reward_log),
    Rule("little logged", False, "logged training losses, fewer than", 3, LOGS, check_little_logged),
)  # fmt: skip
