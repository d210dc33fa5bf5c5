"""Read a learning-rate schedule back from what a run logged: was there a warmup, how long, and which decay followed.

Any Trainer's log carries the rates. [`describe_schedule`] reads them together with the settings if they were recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import acos, cos, log, pi, sqrt
from statistics import median
from typing import TYPE_CHECKING, Any, Literal


if TYPE_CHECKING:
    from .run import Run

Warmup = Literal["seen", "none", "none logged", "never left", "between", "constant", "optimizer", "unknown"]

_SAME = 1e-4  # relative difference below which two logged rates are equal: logs round
_FITS = 0.02  # of the peak: largest difference between logged rates and a decay that is named
_PAST_PEAK = 0.8  # a rise slower than this share of the warmup's slope includes the peak
_OPTIMIZERS = {"radam": "RAdam", "adam_warmup": "AdamWarmup", "gi_adam": "GI-Adam"}  # with a warmup of their own
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")  # schedules of transformers
_FROM_BETA2 = ("untuned_linear", "untuned_exponential", "radam")  # warmups whose length follows from beta2


@dataclass(frozen=True)
class LoggedSchedule:
    """What is known of a run's schedule.

    Args:
        warmup (`str`): `"seen"`, `"none"`, `"none logged"` (none from the first logged rate on), `"between"` (it ended
            between the first two logged rates), `"never left"`, `"constant"`, `"optimizer"` (built into the optimizer)
            or `"unknown"`.
        length (`int`, *optional*): Updates of warmup, if it was seen and does not follow from beta2.
        first (`int`): The first update whose rate was logged.
        last (`int`): The last one.
        peak (`float`, *optional*): The highest rate; of a run without warmup the first.
        shape (`str`): The decay after the peak, such as `"linear to 0"`.
        restarts (`list[int]`): Updates at which the rate rose again after it had fallen.
        num_rates (`int`): The number of rates that were logged.
        exact (`bool`): Whether the length comes from the settings.
        by (`str`): The shape of the warmup (`"rising"` if it is no line, empty if too few rates show it), or the
            optimizer that has one.
    """

    warmup: Warmup
    length: int | None = None
    first: int = 0
    last: int = 0
    peak: float | None = None
    shape: str = ""
    restarts: list[int] = field(default_factory=list)
    num_rates: int = 0
    exact: bool = False
    by: str = ""


def rate_text(rate: float) -> str:
    """Return a learning rate as people write it.

    Example:

    ```python
    >>> rate_text(0.00005), rate_text(0.002), rate_text(1.25e-12)
    ('5e-5', '0.002', '1.25e-12')

    ```
    """
    return f"{rate:.3g}".replace("e-0", "e-")


def read_schedule(steps: Sequence[int], rates: Sequence[float], num_training_steps: int | None) -> LoggedSchedule:
    """Read warmup and decay from logged rates.

    Args:
        steps (`Sequence[int]`): The updates that the rates were used for, counted from 1, ascending.
        rates (`Sequence[float]`): The learning rates.
        num_training_steps (`int`, *optional*): The planned length of the run.

    Example:

    ```python
    >>> rates = [min(t / 4, 1) * 1e-3 for t in range(1, 11)]
    >>> found = read_schedule(range(1, 11), rates, 10)
    >>> found.warmup, found.length, found.peak, found.shape
    ('seen', 4, 0.001, 'constant')

    ```
    """
    points = [(step - 1, rate) for step, rate in zip(steps, rates, strict=True) if rate == rate]
    if not points:
        return LoggedSchedule("unknown")
    top = max(rate for _, rate in points)
    known = LoggedSchedule("unknown", None, points[0][0] + 1, points[-1][0] + 1, top, num_rates=len(points))
    if len(points) == 1 or top <= 0:
        return known
    if min(rate for _, rate in points) >= top * (1 - _SAME):
        return replace(known, warmup="constant", shape="constant")
    rising = _rising_end(points, top)
    restarts = _restarts(points[rising:], top)
    known = replace(known, restarts=restarts)
    end = next((i for i, (x, _) in enumerate(points, 1) if restarts and x + 1 == restarts[0]), len(points))
    if rising == 0:
        start = _start(points[:end], num_training_steps)
        peak = start or points[0][1]
        shape = _shape(points[:end], 0 if start else None, peak, num_training_steps)
        return replace(known, warmup="none" if start else "none logged", peak=peak, shape=shape)
    if rising == len(points) - 1 and not _bends(points):
        return replace(known, warmup="never left", length=points[-1][0] + 1, shape="rising")
    meeting = _warmup_end(points[:end], rising)
    if meeting is None:
        shape = _shape(points[rising:end], None, points[rising][1], num_training_steps)
        return replace(known, warmup="between", shape=shape)
    top_at, peak, zero = meeting
    rise = [peak * (x - zero) / (top_at - zero) - rate for x, rate in points[: rising + 1] if zero <= x <= top_at]
    by = "" if len(rise) <= 2 else "linear" if max(map(abs, rise)) <= _FITS * peak else "rising"
    peak = max(peak, *(rate for _, rate in points[:end]))
    rounded = float(f"{peak:.1e}")
    peak = rounded if abs(rounded - peak) < 0.01 * peak else peak
    shape = _shape([point for point in points[:end] if point[0] > top_at], top_at, peak, num_training_steps)
    return replace(known, warmup="seen", length=max(1, round(top_at - zero)), peak=peak, shape=shape, by=by)


_Points = list[tuple[int, float]]


def _rising_end(points: _Points, top: float) -> int:
    """Return the index of the highest point before the rate first falls."""
    end = 0
    for i, (_, rate) in enumerate(points):
        if rate > points[end][1] + _SAME * top:
            end = i
        elif rate < points[end][1] - _SAME * top:
            break
    return end


def _slopes(points: _Points) -> list[float]:
    return [(b - a) / (y - x) for (x, a), (y, b) in pairwise(points)]


def _bends(points: _Points) -> bool:
    """Return whether the last rise is so slow that the peak lies inside it."""
    slopes = _slopes(points)
    return len(slopes) > 1 and slopes[-1] < _PAST_PEAK * median(slopes[:-1]) / 2


def _warmup_end(points: _Points, rising: int) -> tuple[float, float, float] | None:
    """Return where the rising line meets what follows, the rate there, and where the line is 0.

    The line is 0 one update before the first in schedules that start at lr / W, and after the first updates if fp16
    skipped them. Return `None` if too few points are on the rising line.
    """
    up = points[: rising + 1]
    while len(up) > 1 and up[0][1] == up[1][1] == 0:  # the updates that fp16 skipped
        up = up[1:]
    (x0, r0), (x1, r1) = up[0], up[-1]
    if len(up) == 2:
        if r0 == 0 and x1 - x0 > 1 + (x0 == 0):
            return None
        slope = r0 / x0 if x0 > 0 and r0 > 0 else r1 / (x1 - x0)
        past = (r1 - r0) / (x1 - x0) < _PAST_PEAK * slope
    else:
        slopes = _slopes(up)
        past = slopes[-1] < _PAST_PEAK * median(slopes[:-1])
        slope = (up[-2 if past else -1][1] - r0) / (up[-2 if past else -1][0] - x0)
    after = points[rising if past else rising + 1 :][:2]
    low = up[-2 if past else -1][0]
    zero = min(max(x0 - r0 / slope, -1.5), 0.1 * low)
    if len(after) < 2:
        return *up[-1], zero
    high = after[0][0]
    if not past and high - low <= 1:  # every update was logged
        return *up[-1], zero
    (y0, s0), (y1, s1) = after
    falling = min(0.0, (s1 - s0) / (y1 - y0))
    meeting = (s0 - falling * y0 - r0 + slope * x0) / (slope - falling)
    meeting = min(max(meeting, low), high)
    return meeting, min(r0 + slope * (meeting - x0), s0 + falling * (meeting - y0)), zero


def _restarts(points: _Points, top: float) -> list[int]:
    """Return the updates after which the rate rises although it had fallen. One long rise counts once."""
    found, fell = [], False
    for (x, rate), (_, following) in pairwise(points):
        if following > rate + 0.01 * top:
            found += [x + 1] if fell else []
            fell = False
        elif following < rate - _SAME * top:
            fell = True
    return found


def _start(points: _Points, total: int | None) -> float | None:
    """Return the rate at the first update, if the points prove that a decay without warmup passes through them.

    A cosine without warmup has one shape. A line could follow a warmup, unless it meets a round rate at the start.
    """
    if points[0][0] == 0:
        return points[0][1]
    if len(points) < 3:
        return None
    if total:
        starts = [2 * rate / (1 + cos(pi * x / total)) for x, rate in points if x < 0.9 * total]
        if len(starts) > 2 and max(starts) - min(starts) < 1e-3 * max(starts):
            return float(f"{median(starts):.3g}")
    (x0, r0), (x1, r1) = points[:2]
    start = r0 - (r1 - r0) / (x1 - x0) * x0
    is_round = abs(start - float(f"{start:.0e}")) < 2e-3 * start or abs(start - float(f"{start:.1e}")) < 2e-4 * start
    middle, last = points[len(points) // 2], points[-1]
    on_line = all(abs(r0 + (r1 - r0) / (x1 - x0) * (x - x0) - rate) < _FITS * start for x, rate in (middle, last))
    return float(f"{start:.1e}") if is_round and on_line else None


def _shape(points: _Points, warmup: float | None, peak: float, total: int | None) -> str:
    """Return the name of the decay through `points`, which start at or after the peak, and where it ends."""
    if len(points) < 2:
        return ""
    (x0, r0), (x1, r1) = points[0], points[-1]
    if r0 - r1 <= 1e-3 * peak and max(rate for _, rate in points) - r1 <= 1e-3 * peak:
        return "constant"
    if len(points) < 4:
        return f"falling, {rate_text(r1)} at update {x1 + 1}"
    end = total if total and total > x1 else x1
    begin = x0 if warmup is None else warmup

    def fits(curve: Sequence[float]) -> bool:
        return all(abs(value - rate) <= _FITS * peak for value, (_, rate) in zip(curve, points, strict=True))

    def to(rate: float) -> str:
        return f"to {rate_text(rate) if rate > 0.01 * peak else 0}"

    slope = (r1 - r0) / (x1 - x0)
    at_end = r1 + slope * (end - x1)
    ends = x1 >= 0.9 * end
    if fits([r0 + slope * (x - x0) for x, _ in points]) and (ends or abs(at_end) < _FITS * peak):
        return f"linear {to(at_end)}"
    halves = [(1 + cos(pi * (x - begin) / max(1, end - begin))) / 2 for x, _ in points]
    low = max(0.0, (r1 - peak * halves[-1]) / (1 - halves[-1])) if ends and halves[-1] < 0.9 else 0.0
    if fits([low + (peak - low) * half for half in halves]):
        return f"cosine {to(low)}"
    if not ends:
        return f"falling, {rate_text(r1)} at update {x1 + 1}"
    if fits([r0 * sqrt((x0 or 1) / (x or 1)) for x, _ in points]):
        return f"inverse square root to {rate_text(r1)}"
    if min(r0, r1) > 0 and fits([r0 * (r1 / r0) ** ((x - x0) / (x1 - x0)) for x, _ in points]) and log(r0 / r1) > 0.3:
        return f"exponential to {rate_text(r1)}"
    return f"falling to {rate_text(r1) if r1 > 1e-3 * peak else 0}"


def untuned_length(settings: Mapping[str, Any]) -> int | None:
    """Return 2 / (1 - beta2), the updates of warmup that Adam's `adam_beta2` asks for; `None` if that is not known."""
    beta2 = settings.get("adam_beta2")
    return round(2 / (1 - beta2)) if isinstance(beta2, (int, float)) and 0 <= beta2 < 1 else None


def planned_warmup(settings: Mapping[str, Any], num_training_steps: int | None) -> int | None:
    """Return the updates of warmup that `settings` ask for; `None` if they do not say.

    Of a warmup that follows from beta2 this is 2 / (1 - beta2); the curves approach 1 only later.
    """
    kind, decay = settings.get("warmup_type"), settings.get("lr_scheduler_type")
    length = settings.get("num_warmup_steps", settings.get("warmup_steps"))
    if kind in _FROM_BETA2:
        return untuned_length(settings)
    if not isinstance(length, (int, float)):
        return None
    if settings.get("optim") == "adam_warmup":
        return int(length) or None  # 0: the length is among `optim_args`
    if kind == "none" or (kind is None and decay in _WITHOUT_WARMUP):
        return 0
    return round(length * (num_training_steps or 0)) if 0 < length < 1 else int(length)


def find_decay_end(steps: Sequence[int], rates: Sequence[float]) -> int | None:
    """Return the update at which a linear or a cosine decay to 0 was planned to end, if the rates stop long before.

    Example:

    ```python
    >>> find_decay_end(range(1, 51), [1 - t / 100 for t in range(50)])
    100
    >>> find_decay_end(range(1, 101), [1 - t / 100 for t in range(100)])

    ```
    """
    peak = max(rates, default=0.0)
    if not peak > 0 or rates[-1] < 0.1 * peak:
        return None
    top = len(rates) - 1 - list(reversed(rates)).index(peak)
    if len(rates) - top < 5 or rates[-1] > 0.99 * peak:
        return None
    length = steps[-1] - steps[top]
    for progress in (lambda share: 1 - share, lambda share: acos(2 * share - 1) / pi):  # linear, cosine
        at = [progress(max(0.0, rate / peak)) for rate in rates[top:]]
        line = [at[-1] * (step - steps[top]) / length for step in steps[top:]]
        if all(abs(a - b) < 0.01 * at[-1] for a, b in zip(at, line, strict=True)):
            return round(steps[top] - 1 + length / at[-1])
    return None


def logged_schedule(run: Run) -> LoggedSchedule:
    """Return what the settings of `run`, or else its logged rates, say about its schedule."""
    settings, total = run.settings, run.num_training_steps
    rates = run.scheduled_rates or run.learning_rates
    found = read_schedule(*rates, total)
    logged = run.series("learning_rate").steps or rates.steps
    if logged:  # by the log's own steps, which are earlier by one where the next update's rate was logged
        found = replace(found, first=logged[0], last=logged[-1])
    rewound = run.recorded("rewound_warmup_steps").values
    length = int(rewound[-1]) if rewound else planned_warmup(settings, total)
    decay, kind, optim = settings.get("lr_scheduler_type"), settings.get("warmup_type"), str(settings.get("optim"))
    if decay is None or (found.restarts and not rewound):
        return found
    peak = settings.get("learning_rate") if decay != "noam" else None
    known = replace(found, exact=True, shape=str(decay), peak=peak if isinstance(peak, (int, float)) else found.peak)
    if kind in _FROM_BETA2:
        return replace(known, warmup="seen", length=None, by=str(kind))
    if optim in _OPTIMIZERS and not length:
        return replace(known, warmup="optimizer", by=_OPTIMIZERS[optim])
    if length is None:
        return found
    by = "found by rewinding, linear" if rewound else "linear" if kind == "auto" else str(kind or "linear")
    return replace(known, warmup="seen", length=length, by=by) if length else replace(known, warmup="none")


def describe_schedule(run: Run) -> str:
    """Return a sentence about the schedule of `run`: its warmup with its length, its peak and its decay.

    It is never empty: what cannot be told is said.
    """
    found = logged_schedule(run)
    rate = rate_text(found.peak) if found.peak is not None else "an unknown rate"
    total = run.num_training_steps or run.updates
    then = f", then {found.shape}" if found.shape else ""
    again = ""
    if found.restarts and not found.exact:
        shown = ", ".join(map(str, found.restarts[:3])) + (", ..." if len(found.restarts) > 3 else "")
        again = f" The rate rises again after update {shown}: restarts, or a run that was resumed with another plan."
    first = f"at update {found.first}, the first that was logged"
    match found.warmup:
        case "seen":
            share = f" ({100 * found.length / total:.2g} %)" if total and found.length else ""
            length = f"{'' if found.exact else 'about '}{found.length} of {total} updates{share}, "
            text = f"Warmup: {length if found.length else ''}{found.by or 'rising'} to {rate}{then}."
        case "optimizer":
            text = f"Warmup: built into {found.by}; the schedule has none and starts at {rate}{then}."
        case "none":
            text = f"No warmup: the rate starts at {rate}{then}."
        case "none logged":
            text = f"No warmup to be seen: the rate is highest, {rate}, {first}{then}."
        case "between":
            text = f"Warmup: it ended before the second logged rate, so its length cannot be told{then}."
        case "constant":
            seen, since = (
                ("", "") if found.first == 1 else (" to be seen", f" from update {found.first}, the first logged, on")
            )
            text = f"No warmup{seen}: the rate is constant at {rate}{since}."
        case "never left":
            if run.end == "finished":
                text = f"The whole run was warmup: at its end, update {found.last}, the rate still rises, to {rate}."
            else:
                text = f"Still in its warmup at update {found.last} of {total}: the rate is rising, at {rate}."
        case _:
            text = "Warmup: cannot be told from " + ("one logged rate." if found.num_rates else "a log without rates.")
    return text + again
