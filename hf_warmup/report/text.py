"""The report as plain text: what was read, what went wrong, and which checkpoint is best."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import mean

from .comparison import (
    by_configuration,
    common_metric,
    decimals,
    differing_settings,
    mean_and_spread,
    names_of,
    results_by_metric,
)
from .findings import Group, describe_coverage, find, group_findings
from .run import Run
from .schedule import describe_schedule


LEVELS = ("problem", "advice", "note")
SHOWN = 5  # groups of one rule that the text shows


def describe_evaluations(run: Run) -> str:
    """Return a sentence about the best and the last evaluation of `run`, or `""` if there was none.

    The metric is the one that selected the best model, else the usual metric of the task, else `eval_loss`.
    """
    best, last = run.best(), run.last()
    if best is None or last is None:
        return ""
    if best.step == last.step:
        return f"Best {best.key}: {best.value:.4g} at update {best.step}, the last evaluation."
    use = f"; use checkpoint-{best.step}" if run.best_step == best.step else ""
    return f"Best {best.key}: {best.value:.4g} at update {best.step} (last: {last.value:.4g} at {last.step}){use}."


def without_problem(runs: Sequence[Run]) -> str:
    """Return what is said of runs in which no rule found a problem; praise only if there was enough to judge by."""
    enough = any(len(run.losses.steps) >= 3 or run.layers for run in runs)
    return "No problem found." if enough else "Too little was logged to judge by."


def _label(rule: str, is_problem: bool) -> str:
    return f"PROBLEM ({rule})" if is_problem else rule


def summarize_run(run: Run) -> list[str]:
    """Return the report on one run as paragraphs.

    The first says how the run ended and what its schedule was. The second says what went wrong and which evaluation is
    best. Further findings follow, and last what there was to judge by.
    """
    findings = find(run)
    said = [f"{_label(each.rule, each.is_problem)}: {each.text}" for each in findings]
    if not any(each.is_problem for each in findings):
        said.insert(0, without_problem([run]))
    skipped = f" {run.unreadable} log entries or values were skipped: they hold no number." if run.unreadable else ""
    return [
        f"{run.name}: {run.status}. {describe_schedule(run)}",
        f"{said[0]} {describe_evaluations(run)}".rstrip(),
        *said[1:],
        describe_coverage(run) + skipped,
    ]


def rank_configurations(runs: Sequence[Run]) -> tuple[str, list[tuple[str, list[float]]]] | None:
    """Return the metric that most runs have, and the configurations with its values of the kept models, best first."""
    metric = common_metric(runs)
    if metric is None:
        return None
    known = results_by_metric(runs).get(metric, {})
    sign = -1 if metric in runs[0].evaluations and runs[0].greater_is_better(metric) else 1
    if len(known) < 0.9 * len(by_configuration(runs)):  # runs of different tasks
        return None
    return metric, sorted(known.items(), key=lambda item: (mean(item[1]) != mean(item[1]), sign * mean(item[1])))


def headline(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """Return the answer in two or three sentences: what is best by which metric, and what failed.

    Args:
        runs (`Sequence[Run]`): The runs.
        groups (`Sequence[Group]`): Their findings.
    """
    if len(runs) == 1:
        rules = ", ".join(dict.fromkeys(group.rule.name for group in groups if group.rule.is_problem))
        problems = f"Problems: {rules}." if rules else without_problem(runs)
        sentences = [f"{runs[0].status[0].upper()}{runs[0].status[1:]}.", describe_evaluations(runs[0]), problems]
        return " ".join(filter(None, sentences))
    configurations = by_configuration(runs)
    of = f" of {len(configurations)} configurations" if len(configurations) < len(runs) else ""
    text = f"{len(runs)} runs{of}"
    ranked = rank_configurations(runs)
    if ranked and len(ranked[1]) > 1:
        metric, order = ranked
        (best, values), (second, others) = order[:2]
        digits = decimals(values)
        text += f". Best {metric}: {mean_and_spread(values, digits)} with {best}"
        text += f"; next {mean_and_spread(others, digits)} with {second}"
    failed = {name: count for name, count in count_failures(runs, groups).items() if count}
    named = [
        f"{name} ({count} of {len(configurations[name])})" if len(configurations[name]) > 1 else name
        for name, count in failed.items()
    ]
    shown = "; ".join(named[:3]) + (f"; and {len(named) - 3} more" if named[3:] else "")
    count = sum(failed.values())
    return f"{text}. " + (
        f"Problems in {count} run{'s' if count > 1 else ''}: {shown}." if failed else without_problem(runs)
    )


def count_failures(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, int]:
    """Return configuration -> the number of its runs in which a rule found a problem."""
    bad = {name for group in groups if group.rule.is_problem for name in group.findings}
    names = names_of(runs)
    return {name: sum(names[run] in bad for run in members) for name, members in by_configuration(runs).items()}


def describe_ends(runs: Sequence[Run]) -> str:
    """Return how the runs of one configuration ended: the status of a single run, else how many ended how."""
    if len(runs) == 1:
        return runs[0].status
    ends = [run.end for run in runs]
    updates = sorted({run.updates for run in runs})
    planned = f" of {runs[0].num_training_steps}" if "finished" not in ends and runs[0].num_training_steps else ""
    counted = ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends))
    return f"{counted}, {' to '.join(map(str, dict.fromkeys([updates[0], updates[-1]])))}{planned} updates"


def describe_schedules(runs: Sequence[Run]) -> str:
    """Return the sentence about the schedule of most runs of a configuration, and how many that are if not all."""
    said = [describe_schedule(run) for run in runs]
    usual = max(said, key=said.count)
    return usual if said.count(usual) == len(runs) else f"{usual} (So in {said.count(usual)} of {len(runs)} runs.)"


def by_rule(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return rule -> its groups, in the order of the rules."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.rule.name, []).append(group)
    return found


def describe_runs(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """Return [`headline`], and the settings in which the runs differ."""
    differing = differing_settings(runs)
    names = ", ".join(differing[:6]) + (", ..." if differing[6:] else "")
    return headline(runs, groups) + (f" They differ in {names}." if differing else "")


def summarize_runs(runs: Sequence[Run]) -> list[str]:
    """Return the report on several runs as paragraphs: the answer, each configuration, the findings."""
    groups = group_findings(runs)
    lines = [describe_runs(runs, groups)]
    for configuration, members in by_configuration(runs).items():
        lines.append(f"- {configuration}: {describe_ends(members)}. {describe_schedules(members)}")
    for rule, own in by_rule(sorted(groups, key=lambda group: LEVELS.index(group.level))).items():
        level = _label(rule, own[0].rule.is_problem)
        lines += [f"- {group.whose}: {level}: {group.text}" for group in own[:SHOWN]]
        if more := own[SHOWN:]:
            count = sum(len(group.findings) for group in more)
            lines.append(f"- {level}: in {count} further runs. --json FILE and the page name them.")
    return lines


def paragraphs_of(runs: Sequence[Run]) -> list[str]:
    """Return the report on one run or on several as paragraphs."""
    return summarize_run(runs[0]) if len(runs) == 1 else summarize_runs(runs)


def write_text(runs: Sequence[Run], width: int = 100) -> str:
    """Return the report on runs as wrapped text."""
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        for line in paragraphs_of(runs)
    )
