"""The report as plain text: what was read, what went wrong, and which checkpoint is best."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import mean

from .comparison import by_configuration, common_metric, decimals, differing_settings, mean_and_spread, names_of
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


def summarize_run(run: Run) -> list[str]:
    """Return the report on one run as paragraphs.

    The first says how the run ended and what its schedule was. The second says what went wrong and which evaluation is
    best. Further findings follow, and last what there was to judge by.
    """
    findings = find(run)
    said = [
        f"PROBLEM ({each.rule}): {each.text}" if each.is_problem else f"{each.rule}: {each.text}" for each in findings
    ]
    if not any(each.is_problem for each in findings):
        said.insert(0, "No problem found." if judged(run) else "Too little was logged to judge the run.")
    skipped = f" {run.unreadable} log entries or values were skipped: they hold no number." if run.unreadable else ""
    return [
        f"{run.name}: {run.status}. {describe_schedule(run)}",
        f"{said[0]} {describe_evaluations(run)}".rstrip(),
        *said[1:],
        describe_coverage(run) + skipped,
    ]


def judged(run: Run) -> bool:
    """Return whether there was enough to judge a run by: losses or recorded norms."""
    return len(run.losses.steps) >= 3 or bool(run.layers)


def rank_configurations(runs: Sequence[Run]) -> tuple[str, list[tuple[str, list[float]]]] | None:
    """Return the metric that most runs have, and the configurations with its values of the kept models, best first."""
    metric = common_metric(runs)
    if metric is None:
        return None
    values = {
        name: [found[metric] for run in members if metric in (found := run.results())]
        for name, members in by_configuration(runs).items()
    }
    sign = -1 if metric in runs[0].evaluations and runs[0].greater_is_better(metric) else 1
    known = [(name, each) for name, each in values.items() if each]
    if len(known) < 0.9 * len(values):  # runs of different tasks
        return None
    return metric, sorted(known, key=lambda item: (mean(item[1]) != mean(item[1]), sign * mean(item[1])))


def headline(runs: Sequence[Run], failed: Mapping[str, int]) -> str:
    """Return the answer in one or two sentences: which configuration is best by which metric, and what failed.

    Args:
        runs (`Sequence[Run]`): The runs.
        failed (`Mapping[str, int]`): Configuration -> the number of its runs with a problem.
    """
    configurations = by_configuration(runs)
    text = f"{len(runs)} runs of {len(configurations)} configurations" if len(runs) > 1 else f"1 run, {runs[0].status}"
    ranked = rank_configurations(runs)
    if ranked and len(ranked[1]) > 1:
        metric, order = ranked
        (best, values), (second, others) = order[:2]
        digits = decimals(values)
        text += f". Best {metric}: {mean_and_spread(values, digits)} with {best}"
        text += f" ({mean_and_spread(others, digits)} with {second})"
    elif len(runs) == 1:
        text += f". {describe_evaluations(runs[0])}".rstrip(". ")
    if len(runs) > 1:
        named = [f"{name} ({count} of {len(configurations[name])})" for name, count in failed.items() if count]
        shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if named[3:] else "")
        text += f". Runs with a problem: {shown or 'none'}"
    return f"{text}."


def count_failures(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, int]:
    """Return configuration -> the number of its runs in which a rule found a problem."""
    names = names_of(runs)
    bad = {
        name for group in groups if group.rule.is_problem for said_of in group.sentences.values() for name in said_of
    }
    return {name: sum(names[run] in bad for run in members) for name, members in by_configuration(runs).items()}


def by_rule(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return rule -> its groups, in the order of the rules."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.rule.name, []).append(group)
    return found


def describe_group(group: Group) -> str:
    """Return one line about a group of findings: its sentence, and the range of its number over several runs."""
    text, *others = group.sentences
    key = next(iter(group.findings[0].numbers), "")
    values = [finding.numbers[key] for finding in group.findings if key in finding.numbers]
    if not others or not values:
        return text
    low, high = (f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" for value in (min(values), max(values)))
    return text if low == high else f"{text} ({key} {low} to {high} over {group.count} runs)"


def summarize_runs(runs: Sequence[Run]) -> list[str]:
    """Return the report on several runs as paragraphs: the answer, each configuration, the findings."""
    names = names_of(runs)
    groups = group_findings(runs)
    lines = [headline(runs, count_failures(runs, groups))]
    if differing := differing_settings(runs):
        lines[0] += f" They differ in {', '.join(differing[:6])}{', ...' if differing[6:] else ''}."
    for configuration, members in by_configuration(runs).items():
        said: dict[str, list[Run]] = {}
        for run in members:
            said.setdefault(f"{run.status}. {describe_schedule(run)}", []).append(run)
        for text, alike in said.items():
            whose = configuration if len(alike) == len(members) > 1 else ", ".join(names[run] for run in alike)
            lines.append(f"- {whose}{f' ({len(alike)} runs)' if len(alike) > 1 else ''}: {text}")
    for rule, own in by_rule(sorted(groups, key=lambda group: LEVELS.index(group.level))).items():
        level = f"PROBLEM ({rule})" if own[0].rule.is_problem else rule
        for group in own[:SHOWN]:
            every = group.count == group.of
            which = group.configurations if every else list(dict.fromkeys(chain(*group.sentences.values())))
            lines.append(f"- {', '.join(which)}: {level}: {describe_group(group)}")
        if more := own[SHOWN:]:
            count = sum(group.count for group in more)
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
