"""The rules applied to run folders: sentences, groups of runs, what could not be checked."""

from __future__ import annotations

import json

import pytest

from compare_layer_norm import CompareArguments, plan, run_one
from hf_warmup.report import DANGER_RATIO, find, read_run
from hf_warmup.report.figures import panels_of, plot_panel
from hf_warmup.report.findings import describe_coverage, findings_as_dicts, group_findings

from .recorded import recorded, write_run


def stuck(folder, growth=10.0, **kwargs):
    return recorded(folder, steps=30, growth=growth, onset=2, loss=lambda t: 3.3, **kwargs)


def test_find_returns_nothing_for_a_sound_run(tmp_path):
    assert find(recorded(tmp_path / "a", steps=30)) == []


def test_find_puts_problems_first_and_adds_the_advice(tmp_path):
    run = stuck(tmp_path / "a", planned=90, stopped=True, optim="adamw", adam_beta2=0.9, norm_placement="pre")
    finding, *others = find(run)
    assert (finding.rule, finding.is_problem, finding.layer) == ("stalling", True, "encoder.layer.0")
    assert finding.text == f"{finding.sentence} {finding.advice}"
    assert finding.advice.startswith("Warm up for about 20 updates")
    assert [each.rule for each in others] == ["planned length"]


def test_norms_before_the_last_rewind_are_not_judged(tmp_path):
    folder = write_run(tmp_path / "a", steps=10, growth=10.0, onset=2, loss=lambda t: 3.3)
    with (folder / "gradient_norms.jsonl").open("a") as file:
        file.write('{"step": 10, "rewound_to": 0, "rewound_warmup_steps": 25}\n')
        for t in range(11, 21):
            norms = {f"grad_norm/encoder.layer.{i}": 1.0 for i in range(3)}
            file.write(json.dumps({"step": t, "grad_norm": 1.0, **norms}) + "\n")
    assert [finding.rule for finding in find(read_run(folder))] == ["rewound"]


def test_change_of_processes_and_gap_are_noted_and_marked(tmp_path):
    folder = write_run(tmp_path / "a", steps=9)
    rows = [json.loads(line) for line in (folder / "gradient_norms.jsonl").read_text().splitlines()]
    rows[4:4] = [{"step": 4, "former_num_processes": 2, "num_processes": 1}]
    (folder / "gradient_norms.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows if row["step"] not in (7, 8))
    )
    run = read_run(folder)
    assert [finding.text for finding in find(run)] == [
        "The number of processes changed from 2 to 1 after update 4.", "The recording lacks updates 7 to 8."
    ]  # fmt: skip
    loss = next(panel for panel in panels_of([run]) if panel.key == "loss")
    (mark,) = [line for line in plot_panel(run, loss).axes[0].lines if line.get_marker() == "D"]
    assert mark.get_xydata().tolist() == [[4.0, 0.25]]


def test_describe_coverage_names_the_rules_that_could_not_be_checked(tmp_path):
    assert "30 training losses, 1 evaluation and the norms of 4 layers at 30 updates" in describe_coverage(
        recorded(tmp_path / "a", steps=30)
    )
    folder = write_run(tmp_path / "b", steps=5)
    (folder / "gradient_norms.jsonl").unlink()
    text = describe_coverage(read_run(folder))
    assert "5 training losses, 1 evaluation and no norms of layers" in text
    assert "not stalling, gradient not finite" in text


def test_group_findings_states_a_rule_once_per_configuration(tmp_path):
    runs = [stuck(tmp_path / f"stuck-seed{seed}", growth=10.0 + seed) for seed in (0, 1, 2)]
    runs += [recorded(tmp_path / f"{name}-seed{seed}", planned=9, stopped=True) for name in "xy" for seed in (0, 1)]
    runs.append(recorded(tmp_path / "x-seed2", steps=4, planned=9, stopped=True))
    stalled, x, y = group_findings(runs)
    assert (stalled.whose, stalled.rule.name) == ("stuck (3 of 3 runs)", "stalling")
    assert list(stalled.runs_by_text.values()) == [["stuck-seed0"], ["stuck-seed1"], ["stuck-seed2"]]
    assert list(x.runs_by_text.values()) == [["x-seed0", "x-seed1"], ["x-seed2"]]
    assert y.whose == "y (2 of 2 runs)"
    (both,) = group_findings(runs[3:-1])  # the same sentence about all runs of x and y
    assert both.whose == "x; y (4 of 4 runs)"


def test_findings_as_dicts_is_json(tmp_path):
    (entry,) = json.loads(json.dumps(findings_as_dicts([stuck(tmp_path / "a")])))
    assert entry["run"] == "a"
    assert entry["threshold"] == DANGER_RATIO
    assert entry["numbers"]["ratio"] == pytest.approx(100.0)
    assert set(entry) == {"run", "rule", "is_problem", "sentence", "numbers", "advice", "layer", "threshold", "source"}


@pytest.mark.slow
def test_find_tells_a_failed_demo_run_from_sound_ones(tmp_path):
    """The demo, 30 updates: Post-LN without a warmup is stalling by then, the other configurations are not."""
    arms = ["post:adamw:none", "post:adamw:linear", "post:radam:none", "pre:adamw:none"]
    jobs = plan(CompareArguments(arms=arms, seeds=[1], max_steps=30, warmup_steps=30, output_dir=str(tmp_path)))
    findings = {}
    for name, settings in jobs.items():
        run_one(settings, tmp_path / name)
        findings[name] = {finding.rule: finding for finding in find(read_run(tmp_path / name))}
    stalled = findings.pop("post-adamw-none-seed1")["stalling"]
    assert stalled.numbers["ratio"] > DANGER_RATIO
    assert stalled.layer == "encoder.layer.0"
    assert all("stalling" not in found for found in findings.values())
    assert "short warmup" in findings["post-adamw-linear-seed1"]  # 30 of 100
    assert "short warmup" not in findings["pre-adamw-none-seed1"]
