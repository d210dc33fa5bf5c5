"""How often is each rule of the guard right: misses and false alarms on all finished runs, thresholds as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from hf_warmup.guard.callback import KEPT_ROWS
from hf_warmup.guard.rules import RULES, Records
from hf_warmup.report import find, read_run
from hf_warmup.report.figures import COLORS, blank_axes, blank_figure
from hf_warmup.report.findings import apply, records_of
from hf_warmup.report.run import Run

from .kept_runs import Result, read_json
from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .translation import WORKS


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ABOUT = About(
    "The guard's rules on all recorded runs: misses and false alarms",
    ("text-classification", "sequence-reversal, sst2-mr, numbers"),
    "Share of failed and of learned runs in which each rule finds a problem, at the end of the run",
    "The stalling ratio was found on the reversal task. A run of it counts as failed if it did not solve the task "
    "within its updates, slow ones included; a classifier has failed if the area under its ROC curve is below 0.6, "
    "a translation if its BLEU is below 50. "
    "Runs whose guard may rewind and runs on RTE, which is too hard for so few updates, are left out.",
)
LEARNED = 0.6  # area under the ROC curve
TASKS = ("reversal", "text", "translation")
KINDS = [f"{task} {kind}" for task in TASKS for kind in ("failed", "learned")]
EVERY = 5  # updates between two checks of a live guard


def until(records: Records, step: int) -> Records:
    """Return what a live guard sees after update `step`."""
    end = sum(each <= step for each in records.steps)
    begin = max(0, end - KEPT_ROWS)
    log = {key: [(s, v) for s, v in zip(*series, strict=True) if s <= step] for key, series in records.log.items()}
    return replace(
        records,
        steps=records.steps[begin:end],
        norms={layer: values[begin:end] for layer, values in records.norms.items()},
        nonfinite={s: layers for s, layers in records.nonfinite.items() if s <= step},
        log={key: tuple(map(list, zip(*pairs[-2 * KEPT_ROWS :], strict=True))) for key, pairs in log.items() if pairs},
        updates=step,
        ended=False,
        judged=step - EVERY,
    )


def found_live(run: Run) -> dict[str, int]:
    """Return rule -> the update at which a live guard would have found it first."""
    records, found = records_of(run), {}
    rules = [rule for rule in RULES if rule.live]
    for step in range(EVERY, run.updates + 1, EVERY):
        for finding in apply(rules, until(records, step)):
            found.setdefault(finding.rule, step)
        rules = [rule for rule in rules if rule.name not in found]
    return found


def kind_of(result: Result) -> str | None:
    """Return the kind of a run, one of `KINDS`, or `None` for a run that is left out."""
    if result.get("rewinds") or result.get("guard") == "rewind" or result.get("task") == "RTE":
        return None
    if "steps_to_loss_0.5" in result:
        task, learned = "reversal", result["steps_to_loss_0.5"] is not None
    elif "bleu" in result:
        task, learned = "translation", result["bleu"] >= WORKS
    elif "roc_auc" in result:
        task, learned = "text", result["roc_auc"] >= LEARNED
    else:
        return None
    return f"{task} {'learned' if learned else 'failed'}"


def labelled_runs(folder: Path) -> dict[Path, str]:
    """Return run folder -> kind, for all finished runs of all reproductions."""
    results = {path.parent: read_json(path) or {} for path in sorted(folder.glob("*/*/*/result.json"))}
    return {path: kind for path, result in results.items() if (kind := kind_of(result))}


def run(args: ReproduceArguments) -> Outcome:
    """Read all finished runs, check the rules, and draw the shares."""
    labels = labelled_runs(args.folder.parent)
    if args.quick:
        labels = dict(list(labels.items())[:2])
    data = args.data_dir or os.environ.get("HF_WARMUP_DATA")
    logs = sorted(Path(data, "trainer_states").glob("*.json")) if data else []
    runs = {path: read_run(path) for path in [*labels, *logs]}
    at_end = {path: {finding.rule for finding in find(run)} for path, run in runs.items()}
    live = {path: found_live(runs[path]) for path in tqdm(labels, desc="recordings", unit="run")}
    groups = {kind: [path for path in labels if labels[path] == kind] for kind in KINDS}
    found: dict[str, dict[str, int]] = {}
    for rule in RULES:
        counts = {kind: sum(rule.name in at_end[path] for path in paths) for kind, paths in groups.items()}
        counts |= {f"{kind}, live": sum(rule.name in live[path] for path in paths) for kind, paths in groups.items()}
        found[rule.name] = counts | {"public logs": sum(rule.name in at_end[path] for path in logs)}
    header = ["rule", *(f"{len(groups[kind])} {kind}" for kind in KINDS), f"{len(logs)} logs"]
    rows = [
        [
            rule.name,
            *(f"{counts[kind]}" + f" ({counts[f'{kind}, live']})" * rule.live for kind in KINDS),
            str(counts["public logs"]),
        ]
        for rule, counts in zip(RULES, found.values(), strict=True)
        if rule.is_problem or rule.live
    ]
    stalls = {kind: [live[path]["stalling"] for path in groups[kind] if "stalling" in live[path]] for kind in KINDS}
    verdicts = [
        verdict
        for task in TASKS
        for verdict in judge(task, groups, found["stalling"], max(stalls[f"{task} failed"], default=0))
    ]
    figure = draw({rule.name: found[rule.name] for rule in RULES if rule.is_problem}, groups)
    results = {"found": {rule: [counts[kind] for kind in KINDS] for rule, counts in found.items()}}
    return Outcome(figure, verdicts, table_of(header, rows), found, results)


def judge(task: str, groups: Mapping[str, list[Path]], stalls: Mapping[str, int], latest: int) -> list[Verdict]:
    """Judge false alarms and misses of the stalling ratio on the runs of one task."""
    missed, alarms = f"{task} failed", f"{task} learned"
    failed, learned = len(groups[missed]), len(groups[alarms])
    enough = failed >= 20 and learned >= 20
    return [
        Verdict(
            f"the stalling ratio is found in no run that learned ({task})",
            "hf_warmup",
            f"in {stalls[alarms]} of {learned} at the end, in {stalls[alarms + ', live']} while the run trained",
            stalls[alarms] == stalls[alarms + ", live"] == 0 if enough else None,
        ),
        Verdict(
            f"the stalling ratio is found in nine of ten runs that failed ({task})",
            "hf_warmup",
            f"in {stalls[missed]} of {failed} at the end, in {stalls[missed + ', live']} while the run trained, by "
            f"update {latest}",
            stalls[missed + ", live"] >= 0.9 * failed if enough else None,
        ),
    ]


def draw(found: Mapping[str, Mapping[str, int]], groups: Mapping[str, list[Path]]) -> Figure:
    """Draw one panel per task: the share of failed and of learned runs in which each rule finds a problem."""
    names = [name for name, counts in found.items() if any(counts.values())]
    figure = blank_figure(5 * len(TASKS), 3)
    for i, task in enumerate(TASKS, 1):
        axes = blank_axes(figure, f"Runs with a problem: {task}", "", "share of the runs", (1, len(TASKS), i))
        for shift, word, color in ((-0.2, "failed", COLORS[0]), (0.2, "learned", COLORS[1])):
            kind, places = f"{task} {word}", [j + shift for j in range(len(names))]
            shares = [found[name][kind] / (len(groups[kind]) or 1) for name in names]
            axes.barh(places, shares, 0.4, label=word, color=color)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure
