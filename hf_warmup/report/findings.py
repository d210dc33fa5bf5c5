"""The rules of `hf_warmup.guard.rules` applied to whole runs, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from ..guard.rules import DANGER_RATIO, RULES, Records, Rule
from .comparison import by_configuration, names_of
from .run import Run, find_runs


__all__ = [
    "DANGER_RATIO", "RULES", "Finding", "Group", "describe_coverage", "find", "findings_as_dicts", "group_findings",
    "records_of",
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What a rule says about a run.

    Args:
        rule (`str`): Name of the rule.
        is_problem (`bool`): Whether the run goes wrong, as opposed to something worth knowing.
        sentence (`str`): What was found.
        numbers (`dict[str, float]`): The numbers in the sentence by name; `update` is where it was found.
        advice (`str`): What to change; empty if there is nothing to change.
        layer (`str`, *optional*): The layer that it is about.
        threshold (`float`): The rule's threshold.
        source (`str`): Where the threshold comes from.
    """

    rule: str
    is_problem: bool
    sentence: str
    numbers: dict[str, float]
    advice: str
    layer: str | None
    threshold: float
    source: str

    @property
    def text(self) -> str:
        """The sentence and the advice."""
        return f"{self.sentence} {self.advice}".rstrip()


def apply(rules: Iterable[Rule], records: Records) -> list[Finding]:
    """Return what `rules` say about `records`, in the order of the rules."""
    return [
        Finding(
            rule.name, rule.is_problem, verdict.text, verdict.numbers, verdict.advice, verdict.layer, rule.threshold,
            rule.source,
        )
        for rule in rules
        if (verdict := rule.check(records, rule.threshold))
    ]  # fmt: skip


def records_of(run: Run) -> Records:
    """Return the columns of a run that rules read. Norms recorded before the last rewind are left out."""
    keys = dict.fromkeys(key for entry in run.log_history for key in entry if key not in ("step", "epoch"))
    log: dict[str, Any] = {key: series for key in keys if (series := run.series(key))}
    log |= {"loss": run.losses, "learning_rate": run.scheduled_rates, "grad_norm": run.total_norm}
    log["effective_learning_rate"] = run.learning_rates
    log |= {key: run.recorded(key) for key in ("former_num_processes", "num_processes")}
    rewinds = run.recorded("rewound_warmup_steps")
    start = max(rewinds.steps, default=0)
    begin = sum(step <= start for step in run.steps)
    return Records(
        steps=run.steps[begin:],
        norms={layer: values[begin:] for layer, values in run.norms.items()},
        nonfinite={step: layers for step, layers in run.nonfinite.items() if step > start},
        log={key: series for key, series in log.items() if series},
        settings=run.settings,
        num_training_steps=run.num_training_steps,
        updates=run.updates,
        metric=(metric, run.greater_is_better(metric)) if (metric := run.task_metric) else None,
        ended=run.end in ("finished", "stopped early", "interrupted"),
        start=start,
        rewinds=rewinds,
        gaps=run.gaps,
    )


def find(runs: Any, rules: Iterable[Rule] = RULES) -> list[Finding]:
    """Return what the rules say about runs, problems first.

    Args:
        runs (`str`, `os.PathLike`, [`Run`], a Trainer, or a list of these): What to read.
        rules (`Iterable[Rule]`, *optional*): The rules to check; all by default.
    """
    found = [finding for run in find_runs(runs) for finding in apply(rules, records_of(run))]
    return sorted(found, key=lambda finding: not finding.is_problem)


def describe_coverage(run: Run) -> str:
    """Return a sentence about what there was to judge a run by, and which rules could not be checked."""
    records = records_of(run)
    unchecked = [rule.name for rule in RULES if rule.missing(records)]
    evaluations = max((len(series.steps) for series in run.evaluations.values()), default=0)
    norms = f"the norms of {len(run.norms)} layers at {len(run.steps)} updates" if run.norms else "no norms of layers"
    losses = len(run.losses.steps)
    text = (
        f"Read {losses} training loss{'es' * (losses != 1)}, {evaluations} evaluation{'s' * (evaluations != 1)} and "
        f"{norms}: {len(RULES) - len(unchecked)} of {len(RULES)} rules could be checked"
    )
    return f"{text}, not {', '.join(unchecked)}." if unchecked else f"{text}."


@dataclass
class Group:
    """A rule and all runs that it says something about, in one configuration or in several with the same sentence.

    Args:
        rule ([`Rule`][hf_warmup.guard.rules.Rule]): The rule.
        configurations (`list[str]`): Names of the configurations.
        findings (`dict[str, Finding]`): Name of a run -> what the rule says about it.
        of (`int`): The number of runs of these configurations.
    """

    rule: Rule
    configurations: list[str] = field(default_factory=list)
    findings: dict[str, Finding] = field(default_factory=dict)
    of: int = 0

    @property
    def level(self) -> str:
        """`"problem"`, `"advice"` (something to change) or `"note"`."""
        advice = any(each.advice for each in self.findings.values())
        return "problem" if self.rule.is_problem else "advice" if advice else "note"

    @property
    def advice(self) -> str:
        """What to change in the first run."""
        return next(iter(self.findings.values())).advice

    @property
    def runs_by_text(self) -> dict[str, list[str]]:
        """What is said -> the names of the runs that it is said of."""
        found: dict[str, list[str]] = {}
        for name, finding in self.findings.items():
            found.setdefault(finding.text, []).append(name)
        return found

    @property
    def whose(self) -> str:
        """The first configurations, with the number of runs if a configuration has several."""
        named = self.configurations[:3] + [f"{len(self.configurations) - 3} more"] * (len(self.configurations) > 3)
        counted = f" ({len(self.findings)} of {self.of} runs)" if self.of > len(self.configurations) else ""
        return "; ".join(named) + counted

    @property
    def text(self) -> str:
        """What is said of the first run, and the range of its first number over several runs."""
        first, *others = self.findings.values()
        key = next(iter(first.numbers), "")
        values = [each.numbers[key] for each in (first, *others) if key in each.numbers]
        if not others or not values or min(values) == max(values):
            return first.text
        low, high = (f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" for value in (min(values), max(values)))
        return f"{first.text} ({key} {low} to {high} over {len(self.findings)} runs)"


def group_findings(runs: Sequence[Run]) -> list[Group]:
    """Return the findings of many runs by rule and configuration, problems first.

    Configurations of whose runs the same sentence is said share a group.
    """
    names, configurations = names_of(runs), by_configuration(runs)
    found = {run: {finding.rule: finding for finding in find(run)} for run in runs}
    groups: dict[tuple[str, str], Group] = {}
    for rule in sorted(RULES, key=lambda rule: not rule.is_problem):
        for configuration, members in configurations.items():
            said = {names[run]: found[run][rule.name] for run in members if rule.name in found[run]}
            texts = {finding.text for finding in said.values()}
            alike = len(said) == len(members) and len(texts) == 1
            if said:
                group = groups.setdefault((rule.name, min(texts) if alike else f"{configuration}\n"), Group(rule))
                group.configurations.append(configuration)
                group.findings |= said
                group.of += len(members)
    return list(groups.values())


def findings_as_dicts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the findings of many runs for JSON: the fields of [`Finding`], and `run`, the name of its run.

    A number that is not finite, which JSON does not have, is `None`.
    """
    names = names_of(runs)
    found = [{"run": names[run], **asdict(finding)} for run in runs for finding in find(run)]
    for each in found:
        each["numbers"] = {key: value if isfinite(value) else None for key, value in each["numbers"].items()}
    return found
