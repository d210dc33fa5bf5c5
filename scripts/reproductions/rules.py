"""How often is each rule of the guard right: misses and false alarms on all finished runs, thresholds as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_warmup.guard.callback import KEPT_ROWS
from hf_warmup.guard.rules import RULES, Records
from hf_warmup.report import find, read_run
from hf_warmup.report.findings import apply, records_of
from hf_warmup.report.run import Run

from .drawing import COLORS, blank_axes, blank_figure
from .kept_runs import read_json
from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of


ABOUT = About(
    "The guard's rules on all recorded runs: misses and false alarms",
    ("fill-mask", "sequence-reversal"),
    "Share of failed and of learned runs in which each rule finds a problem, at the end and while the run trained",
    "Nearly all runs are of one synthetic task, on which the stalling ratio was found. A run counts as failed if it "
    "did not solve its task within its updates, slow ones included. Runs that a guard rewound are left out.",
)
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


def labelled_runs(folder: Path) -> dict[Path, bool]:
    """Return the run folders in `folder` -> whether the run solved its task; without runs that were rewound."""
    results = {path.parent: read_json(path) or {} for path in sorted(folder.glob("*/runs/*/result.json"))}
    return {
        path: result["steps_to_loss_0.5"] is not None
        for path, result in results.items()
        if "steps_to_loss_0.5" in result and not result.get("rewinds")
    }


def count(findings: Mapping[Path, Any], rule: str) -> int:
    """Return in how many runs a rule was found."""
    return sum(rule in found for found in findings.values())


def run(args: ReproduceArguments) -> Outcome:
    """Read all finished runs, check the rules, and draw the shares."""
    labels = labelled_runs(args.folder.parent)
    if args.quick:
        labels = dict(list(labels.items())[:2])
    data = args.data_dir or os.environ.get("HF_WARMUP_DATA")
    logs = sorted(Path(data, "trainer_states").glob("*.json")) if data else []
    runs = {path: read_run(path) for path in labels}
    at_end = {path: {finding.rule for finding in find(run)} for path, run in runs.items()}
    live = {path: found_live(run) for path, run in runs.items()}
    public = {path: {finding.rule for finding in find(read_run(path))} for path in logs}
    kinds = {learned: [path for path in labels if labels[path] is learned] for learned in (False, True)}
    rows, numbers = [], {}
    for rule in RULES:
        counts = [
            count({path: found[path] for path in kinds[kind]}, rule.name) for found in (at_end, live) for kind in kinds
        ]
        numbers[rule.name] = dict(zip(("failed", "learned", "failed, live", "learned, live"), counts, strict=True)) | {
            "public logs": count(public, rule.name)
        }
        if rule.is_problem or rule.live:
            shown = counts if rule.live else [*counts[:2], "-", "-"]
            rows.append([rule.name, *map(str, shown), str(count(public, rule.name))])
    failed, learned = (len(kinds[kind]) for kind in kinds)
    header = ["rule", f"{failed} failed", f"{learned} learned", "failed, live", "learned, live", f"{len(logs)} logs"]
    stalls = numbers["stalling"]
    enough = failed >= 20 and learned >= 20
    latest = max((live[path]["stalling"] for path in kinds[False] if "stalling" in live[path]), default=0)
    verdicts = [
        Verdict(
            "the stalling ratio is found in no run that learned", "hf_warmup",
            f"in {stalls['learned']} of {learned} at the end, in {stalls['learned, live']} while the run trained",
            stalls["learned"] == stalls["learned, live"] == 0 if enough else None,
        ),
        Verdict(
            "the stalling ratio is found in nine of ten runs that failed", "hf_warmup",
            f"in {stalls['failed']} of {failed} at the end, in {stalls['failed, live']} while the run trained, by "
            f"update {latest}",
            stalls["failed, live"] >= 0.9 * failed if enough else None,
        ),
    ]  # fmt: skip
    figure = blank_figure(7, 3)
    axes = blank_axes(figure, "Runs in which a rule finds a problem", "", "share of the runs")
    names = [rule.name for rule in RULES if rule.is_problem and any(numbers[rule.name].values())]
    for shift, (kind, color) in zip((-0.2, 0.2), {"failed": COLORS[0], "learned": COLORS[1]}.items(), strict=True):
        total = (failed if kind == "failed" else learned) or 1
        places = [i + shift for i in range(len(names))]
        axes.barh(places, [numbers[name][kind] / total for name in names], 0.4, label=kind, color=color)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    results = {"found": {rule: [each["failed"], each["learned"]] for rule, each in numbers.items()}}
    return Outcome(figure, verdicts, table_of(header, rows), numbers, results)
