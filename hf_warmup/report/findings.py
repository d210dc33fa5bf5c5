"""What a recording says, in words, each with the number behind it: one table of rules, each a function of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, median
from typing import Any

from ..schedules import NOAM_PEAK
from .run import Run


WINDOW = 5  # records whose median is taken, so that one odd batch makes no finding
# Of the last/first-layer ratio: near the middle, in logarithms, of the highest that a run which learned came to (9.3)
# and the lowest that one which failed did (118); RULES names the runs.
DANGER_RATIO = 30.0
_PROGRESS, _LONG_ENOUGH = 0.1, 100
_SETTLED = 0.1  # of a run: until then the loss mostly falls from a new head's numbers to those of a guess

_ADAM = ("adam", "adamw", "adam_warmup", "adamw_torch", "adamw_torch_fused", "adamw_hf", "nadam")
_OWN_LENGTH = ("untuned_linear", "untuned_exponential", "radam")  # warmups that follow from beta2
# transformers' schedules without a warmup, and those whose warmup starts at learning rate 0.
_NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
# Post-LN where the configuration does not say it: transformers' BERT and its kin.
_POST_LN = ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta")
_FROM_ZERO = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup", "inverse_sqrt")


@dataclass(frozen=True)
class Finding:
    """One sentence about a run, and the numbers in it by name."""

    rule: str
    is_problem: bool
    text: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Rule:
    """A row of the table: what is asked of a run, the threshold, and where it comes from.

    `check(run, threshold)` returns the sentence and its numbers, or `None`. A problem is a run that goes wrong; what is
    no problem is worth knowing.
    """

    name: str
    is_problem: bool
    condition: str
    threshold: float
    source: str
    check: Callable[[Run, float], tuple[str, dict[str, float]] | None]


def _smooth(values: Sequence[float]) -> list[float]:
    """Median of each `WINDOW` in a row; of a shorter series its own."""
    width = min(WINDOW, len(values))
    return [median(values[i : i + width]) for i in range(len(values) - width + 1)] if width else []


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _untuned_length(run: Run) -> int | None:
    """Updates of warmup that Adam's beta2 asks for, 2 / (1 - beta2); `None` for other optimizers."""
    beta2 = run.settings.get("adam_beta2")
    if run.settings.get("optim") not in _ADAM or beta2 is None or not 0 <= beta2 < 1:
        return None
    return round(2 / (1 - beta2))


def _warmup_length(run: Run) -> int | None:
    """Updates of warmup that the run had; `None` where the settings do not say it or it follows from beta2."""
    settings = run.settings
    kind, decay = settings.get("warmup_type"), settings.get("lr_scheduler_type")
    length = settings.get("num_warmup_steps", settings.get("warmup_steps"))
    if kind in _OWN_LENGTH or length is None:
        return None
    if settings.get("optim") == "adam_warmup":
        return int(length) or None  # else it stands in `optim_args`
    if kind == "none" or (kind is None and decay in _NO_WARMUP):
        return 0
    return round(length * (run.num_training_steps or 0)) if 0 < length < 1 else int(length)


def _is_post_ln(run: Run) -> bool:
    placement = run.settings.get("norm_placement")
    return placement == "post" if placement else run.settings.get("model_type") in _POST_LN


def _advice(run: Run, begins: int) -> str:
    asked, had = _untuned_length(run), _warmup_length(run)
    options = []
    if not had:
        fits = asked and asked <= (run.num_training_steps or run.updates)
        options.append(f"warm up for about {asked} updates (2 / (1 - beta2))" if fits else "warm up")
    options += ["use RAdam"] if run.settings.get("optim", "adamw") in _ADAM else []
    options += ["use Pre-LN"] if _is_post_ln(run) and "bert" in run.settings.get("model_type", "bert") else []
    options = [*options, "lower the learning rate"] if had or not options else options
    last = "" if options[-1].startswith("lower") else ", and lower the learning rate if that is not enough"
    when = f" (the warmup took {had} updates, this began at {begins})" if had else ""
    return f"{', '.join(options[:-1])}{' or ' if options[1:] else ''}{options[-1]}{when}{last}"


def _stalling(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    steps, ratios = run.ratio()
    smooth = _smooth(ratios)
    above = [i for i, ratio in enumerate(smooth) if ratio > threshold]
    if not above:
        return None
    middle = min(WINDOW, len(ratios)) // 2
    begins, ends = (steps[i + middle] for i in (above[0], above[-1]))
    worst = max(above, key=smooth.__getitem__)
    share = sum(ratio > threshold for ratio in ratios) / len(ratios)
    first, last = run.blocks[0], run.blocks[-1]
    recovered = smooth[-1] <= threshold
    text = (
        f"{first}'s gradient is {smooth[worst]:,.0f} times smaller than {last}'s at update {steps[worst + middle]} "
        f"(more than {threshold:g} times in {_percent(share)} of the recorded updates, first at {begins}): "
        f"this run {f'stalled until update {ends}' if recovered else 'is stalling'}; {_advice(run, begins)}."
    )
    return text, {"ratio": smooth[worst], "update": steps[worst + middle], "first": begins, "share": share}


def _nonfinite(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    spoilt = run.nonfinite
    share = len(spoilt) / max(1, len(run.steps))
    # With fp16 the loss scale is found by overflowing now and then; those updates are skipped.
    if share <= (threshold if run.settings.get("fp16") else 0.0):
        return None
    first = min(spoilt)
    where = ", ".join(spoilt[first][:3])
    text = (
        f"{len(spoilt)} of {len(run.steps)} recorded updates ({_percent(share)}) had a gradient that was not "
        f"finite, first update {first} in {where}."
    )
    return text, {"updates": len(spoilt), "first": first, "share": share}


def _loss_is_lost(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    steps, losses = run.losses
    spoilt = [step for step, loss in zip(steps, losses, strict=True) if not isfinite(loss)]
    if spoilt:
        return f"The training loss was not finite at update {spoilt[0]}: it diverged.", {"update": spoilt[0]}
    smooth = _smooth(losses)
    if len(smooth) < WINDOW:
        return None
    best = min(smooth)
    lost = (smooth[-1] - best) / (losses[0] - best) if losses[0] > best else 1.0
    # What was never won cannot be lost.
    if lost <= threshold or losses[0] - best < _PROGRESS * losses[0]:
        return None
    text = (
        f"The training loss fell from {losses[0]:.3g} to {best:.3g} at update {steps[smooth.index(best)]} and is back "
        f"at {smooth[-1]:.3g}: {_percent(lost)} of the way is lost."
    )
    return text, {"first": losses[0], "best": best, "last": smooth[-1], "lost": lost}


def _no_progress(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    steps, losses = run.losses
    smooth = _smooth(losses)
    # A run that is not over may be on a plateau in front of its fall.
    if run.cut_short or len(smooth) < WINDOW or steps[-1] < _LONG_ENOUGH or not all(map(isfinite, losses)):
        return None
    settled = min(len(smooth) - 1, next(i for i, step in enumerate(steps) if step >= _SETTLED * steps[-1]))
    begun, best = smooth[settled], min(smooth[settled:])
    if begun <= 0 or (fall := (begun - best) / begun) >= threshold:
        return None
    text = (
        f"Since update {steps[settled + WINDOW // 2]} of {steps[-1]} the training loss has fallen by {_percent(fall)}, "
        f"from {begun:.3g} to {best:.3g}: little was learned, unless it began near its best."
    )
    return text, {"fall": fall, "begun": begun, "best": best}


def _noam_peak(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    _, rates = run.scheduled_rates
    peak, low = max(rates, default=threshold), threshold
    if run.settings.get("lr_scheduler_type") != "noam" or low <= peak <= NOAM_PEAK[1]:
        return None
    text = (
        f"Noam peaked at a learning rate of {peak:.3g}, outside [{low:g}, {NOAM_PEAK[1]:g}]: with d_model the "
        "learning rate is the paper's factor (1 or 2), without it the peak itself."
    )
    return text, {"peak": peak}


def _short_warmup(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    asked, had = _untuned_length(run), _warmup_length(run)
    if asked is None or had is None or had >= threshold * asked or not _is_post_ln(run):
        return None
    if _stalling(run, DANGER_RATIO):  # whose advice has the number
        return None
    at = f"at beta2 = {run.settings['adam_beta2']:g}"
    text = f"No warmup, where 2 / (1 - beta2) = {asked} updates are usual {at}"
    if had:
        text = f"A warmup of {had} updates is {_percent(had / asked)} of the usual 2 / (1 - beta2) = {asked} {at}"
    ratios = _smooth(run.ratio()[1])
    if ratios:
        text += (
            f", and the recording shows no need of more at this learning rate (last/first-layer ratio at most "
            f"{max(ratios):.2g}, limit {DANGER_RATIO:g}); think of it when you raise the rate"
        )
    return f"{text}.", {"warmup": had, "asked": asked, "share": had / asked}


def _clipping(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    limit = run.settings.get("max_grad_norm")
    _, norms = run.total_norm
    if not limit or not norms:
        return None
    share = sum(norm > limit for norm in norms) / len(norms)
    if share <= threshold:
        return None
    text = (
        f"Clipping was active in {_percent(share)} of the recorded updates: max_grad_norm = {limit:g} is "
        f"{limit / mean(norms):.2g} times the mean norm of {mean(norms):.3g}; half to ten times is usual."
    )
    return text, {"share": share, "mean": mean(norms), "limit": limit}


def _wasted_update(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    # The schedule's own: RAdam takes no step before its update 6, and means it.
    steps, rates = run.scheduled_rates
    logged = bool(rates) and steps[0] == 1 and rates[0] <= threshold < max(rates)
    host = run.settings.get("warmup_type", "") is None and run.settings.get("lr_scheduler_type") in _FROM_ZERO
    if not logged and not (host and run.settings.get("optim") != "adam_warmup" and _warmup_length(run)):
        return None
    text = "The first update had learning rate 0 and changed nothing: warmup_type='linear' starts at lr / W instead."
    return text, {"learning_rate": 0.0}


def _cut_short(run: Run, threshold: float) -> tuple[str, dict[str, float]] | None:
    if not run.cut_short or not run.num_training_steps or run.updates >= threshold * run.num_training_steps:
        return None
    text = f"The run ends at update {run.updates} of {run.num_training_steps}."
    return text, {"update": run.updates, "planned": run.num_training_steps}


RECORDED = "49 recorded runs of the demo and of SST-2"
RULES = (
    Rule(
        "stalling", True,
        f"last over first block's gradient norm, median of {WINDOW} records, above", DANGER_RATIO,
        f"{RECORDED}: failed 118 and more, learned 9.3 and less; Xiong et al. 2020", _stalling,
    ),
    Rule(
        "not finite", True, "share of updates with a gradient that is not finite above (fp16; otherwise any)", 0.01,
        "Micikevicius et al. 2018: loss scaling skips fewer than 1 % of updates", _nonfinite,
    ),
    Rule(
        "loss is lost", True, "share of the fall of the training loss lost again above", 0.5,
        f"{RECORDED}: fell back 0.77 and more, learned 0.22 and less", _loss_is_lost,
    ),
    Rule(
        "no progress", False, f"share of the training loss that a run of {_LONG_ENOUGH} updates or more fell by after "
        f"its first {_percent(_SETTLED)}, below", _PROGRESS, f"{RECORDED}", _no_progress,
    ),
    Rule(
        "Noam's peak", True, f"Noam's highest learning rate above {NOAM_PEAK[1]:g} or below", NOAM_PEAK[0],
        "Vaswani et al. 2017: 7e-4; the Trainer warns at the same bounds", _noam_peak,
    ),
    Rule(
        "short warmup", False, "share of 2 / (1 - beta2) updates that Adam's warmup has, below (Post-LN)", 0.5,
        "Ma & Yarats 2019, arXiv 1910.04209", _short_warmup,
    ),
    Rule(
        "clipping", False, "share of updates whose norm is above max_grad_norm, above", 0.5,
        "Pascanu et al. 2013, §3.2: half to ten times the mean norm", _clipping,
    ),
    Rule("wasted update", False, "first update's learning rate at most", 0.0, "transformers #34754", _wasted_update),
    Rule("cut short", False, "share of the planned updates taken, below", 1.0, "the Trainer's max_steps", _cut_short),
)  # fmt: skip


def find(run: Run, rules: Iterable[Rule] = RULES) -> list[Finding]:
    """What the rules say about `run`, problems first."""
    checked = [(rule, rule.check(run, rule.threshold)) for rule in rules]
    return [Finding(rule.name, rule.is_problem, *found) for rule, found in checked if found]


def in_words(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """The findings of many runs, problems first; runs of which the same is to be said share a sentence.

    Returns:
        `list[dict]`: `text`, `is_problem`, `rule`, and `runs`, the names of those it is about.
    """
    shared: dict[tuple[bool, str, str], list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        for finding in find(run):
            shared.setdefault((finding.is_problem, finding.rule, finding.text), []).append(name)
    order = [rule.name for rule in RULES]
    ranked = sorted(shared.items(), key=lambda item: (not item[0][0], order.index(item[0][1])))
    return [{"is_problem": key[0], "rule": key[1], "text": key[2], "runs": names} for key, names in ranked]
