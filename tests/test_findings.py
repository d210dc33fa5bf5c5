"""What the rules say: each on a run that it is about and on one that it is not, and on runs that really trained."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest.mock import ANY

import pytest

from compare_layer_norm import CompareArguments, plan, run_one
from hf_warmup.report import DANGER_RATIO, RULES, find, read_run
from hf_warmup.report.run import Columns

from .recorded import recorded, write_run


ADAMW = {"optim": "adamw", "adam_beta2": 0.99, "warmup_type": "none", "warmup_steps": 0, "lr_scheduler_type": "linear"}


def said(run, rule):
    """The finding of that rule, or `None`."""
    return next((finding for finding in find(run) if finding.rule == rule), None)


def test_rules_are_few_and_each_has_its_source():
    assert len({rule.name for rule in RULES}) == len(RULES) <= 10
    assert all(rule.source and rule.condition for rule in RULES)


def test_a_run_of_which_nothing_is_to_be_said(tmp_path):
    assert find(recorded(tmp_path / "a", steps=300)) == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "gradient_norms.jsonl").write_text("")
    assert find(read_run(tmp_path / "empty")) == []


def test_stalling(tmp_path):
    run = recorded(tmp_path / "a", steps=300, growth=10.0, norm_placement="post", **ADAMW)
    finding = said(run, "stalling")
    assert finding.is_problem
    assert finding.numbers == {"ratio": pytest.approx(100.0), "update": ANY, "first": 3, "share": 1.0}
    assert "encoder.layer.0's gradient is 100 times smaller than encoder.layer.2's at update" in finding.text
    assert "(more than 30 times in 100 % of the recorded updates, first at 3): this run is stalling" in finding.text
    # 2 / (1 - 0.99) = 200 updates: Ma & Yarats 2019.
    assert (
        "warm up for about 200 updates (2 / (1 - beta2)), use RAdam or use Pre-LN, and lower the learning rate if that"
        in (finding.text)
    )
    assert said(recorded(tmp_path / "b", steps=300, growth=5.0), "stalling") is None


def test_one_odd_batch_is_no_stalling(tmp_path):
    folder = write_run(tmp_path / "a", steps=100)
    lines = [json.loads(line) for line in (folder / "gradient_norms.jsonl").read_text().splitlines()]
    for record in lines[40:42]:
        record["grad_norm/encoder.layer.2"] *= 1000
    (folder / "gradient_norms.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    run = read_run(folder)
    assert max(run.ratio()[1]) > DANGER_RATIO
    assert said(run, "stalling") is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adam_beta2": 0.999}, "; warm up, use RAdam or use Pre-LN, and lower"),  # 2000 of 300 updates
        ({"norm_placement": "pre"}, "; warm up for about 200 updates (2 / (1 - beta2)) or use RAdam, and lower"),
        ({"optim": "sgd"}, "; warm up or use Pre-LN, and lower the learning rate if that is not enough."),
        ({"optim": "radam", "norm_placement": "pre"}, "; warm up, and lower the learning rate if that is not enough."),
        # What the configuration says: transformers' BERT is Post-LN, GPT-2 is not.
        ({"norm_placement": None, "model_type": "bert", "optim": "sgd"}, "; warm up or use Pre-LN, and"),
        ({"norm_placement": None, "model_type": "gpt2", "optim": "sgd"}, "; warm up, and"),
        (
            {"warmup_type": "linear", "warmup_steps": 0.5},
            "; use RAdam, use Pre-LN or lower the learning rate (the warmup took 150 updates, this began at 3).",
        ),
        (
            {"warmup_type": "linear", "warmup_steps": 9, "optim": "sgd", "norm_placement": "pre"},
            "; lower the learning rate (the warmup took 9 updates, this began at 3).",
        ),
    ],
)
def test_advice_against_stalling(tmp_path, settings, words):
    run = recorded(tmp_path / "a", steps=300, growth=10.0, **ADAMW | {"norm_placement": "post"} | settings)
    assert words in said(run, "stalling").text


def test_a_run_that_stalled_and_recovered(tmp_path):
    folder = write_run(tmp_path / "a", steps=100)
    lines = [json.loads(line) for line in (folder / "gradient_norms.jsonl").read_text().splitlines()]
    for record in lines[20:40]:  # updates 21 to 40
        record["grad_norm/encoder.layer.2"] *= 1000
    (folder / "gradient_norms.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    text = said(read_run(folder), "stalling").text
    assert "in 20 % of the recorded updates, first at 21): this run stalled until update 40; warm up" in text


def test_gradients_that_are_not_finite(tmp_path):
    run = recorded(tmp_path / "a", steps=300)
    run.nonfinite[7] = ["pooler"]
    assert "1 of 300 recorded updates (0.333 %) had a gradient that was not finite, first update 7 in pooler" in (
        said(run, "not finite").text
    )
    # With fp16 the loss scale is found by overflowing; one in a hundred is not more than that.
    assert said(replace(run, settings={"fp16": True}), "not finite") is None


def test_a_loss_that_is_lost(tmp_path):
    run = recorded(tmp_path / "a", steps=200, loss=lambda t: 4.0 - 3.0 * t / 100 if t <= 100 else 3.0)
    finding = said(run, "loss is lost")
    assert finding.numbers["last"] == 3.0
    # Fell from 3.97 to 1.06 (the median of five), and back to 3: 0.667 of the way.
    assert finding.numbers["lost"] == pytest.approx((3.0 - 1.06) / (3.97 - 1.06), rel=1e-6)
    assert said(recorded(tmp_path / "b", steps=200, loss=lambda t: 4.0 if t < 50 else 1.5), "loss is lost") is None
    diverged = recorded(tmp_path / "c", steps=50, loss=lambda t: float("nan") if t > 30 else 1.0)
    assert "not finite at update 31" in said(diverged, "loss is lost").text


def test_no_progress(tmp_path):
    # A new head's loss of 2 falls to that of a guess within 15 updates; what counts is what comes after.
    def guessing(t):
        return 2.0 - 0.08 * t if t <= 15 else 0.8 - 0.0001 * t

    finding = said(recorded(tmp_path / "a", steps=200, loss=guessing), "no progress")
    # The medians around updates 22 and 198 of 200.
    assert finding.numbers["fall"] == pytest.approx((0.7978 - 0.7802) / 0.7978)
    assert finding.text.startswith("Since update 22 of 200 the training loss has fallen by 2.21 %, from 0.798 to 0.78")
    assert not finding.is_problem
    assert said(recorded(tmp_path / "b", steps=200, loss=lambda t: 0.7 - 0.001 * t), "no progress") is None
    assert said(recorded(tmp_path / "short", steps=20, loss=lambda t: 0.7), "no progress") is None
    # It may be on a plateau in front of its fall.
    unfinished = recorded(tmp_path / "c", steps=200, loss=guessing, planned=300, checkpoint=200)
    assert said(unfinished, "no progress") is None


@pytest.mark.parametrize(("rate", "named"), [(2.9e-8, True), (0.3, True), (7e-4, False)])
def test_noams_peak(tmp_path, rate, named):
    run = recorded(tmp_path / "a", log={"learning_rate": rate}, lr_scheduler_type="noam")
    assert (said(run, "Noam's peak") is not None) is named
    assert said(replace(run, settings={"lr_scheduler_type": "linear"}), "Noam's peak") is None


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"warmup_type": "linear", "num_warmup_steps": 100, "adam_beta2": 0.999}, 0.05),
        ({"warmup_type": None, "num_warmup_steps": 0.05, "adam_beta2": 0.999}, 0.05),  # a share of 2000 updates
        ({"warmup_type": "none", "warmup_steps": 100}, 0.0),
        ({"warmup_type": None, "lr_scheduler_type": "constant", "warmup_steps": 300}, 0.0),
        ({"optim": "adam_warmup", "warmup_type": None, "num_warmup_steps": 50}, 0.25),
        ({"warmup_type": "linear", "warmup_steps": 150}, None),
        ({"warmup_type": "untuned_linear", "warmup_steps": 0}, None),
        ({"optim": "radam"}, None),
        ({"optim": "sgd"}, None),
        ({"norm_placement": "pre"}, None),
        ({"norm_placement": None, "model_type": "roberta"}, 0.0),
        ({"norm_placement": None, "model_type": "llama"}, None),
    ],
)
def test_a_short_warmup(tmp_path, settings, share):
    settings = ADAMW | {"norm_placement": "post"} | settings
    finding = said(recorded(tmp_path / "a", planned=2000, **settings), "short warmup")
    assert (finding and finding.numbers["share"]) == share


def test_the_sentence_about_a_short_warmup(tmp_path):
    settings = ADAMW | {"warmup_type": "linear", "num_warmup_steps": 100, "adam_beta2": 0.999, "norm_placement": "post"}
    text = said(recorded(tmp_path / "a", planned=2000, growth=2.0, **settings), "short warmup").text
    assert text == (
        "A warmup of 100 updates is 5 % of the usual 2 / (1 - beta2) = 2000 at beta2 = 0.999, and the recording shows "
        "no need of more at this learning rate (last/first-layer ratio at most 4, limit 30); think of it when you "
        "raise the rate."
    )
    settings["num_warmup_steps"] = 0
    unrecorded = replace(recorded(tmp_path / "none", planned=2000, **settings), recording=Columns())
    assert said(unrecorded, "short warmup").text == (
        "No warmup, where 2 / (1 - beta2) = 2000 updates are usual at beta2 = 0.999."
    )
    # Where the run stalls, that sentence gives the number.
    assert said(recorded(tmp_path / "b", planned=2000, growth=10.0, **settings), "stalling")
    assert said(recorded(tmp_path / "c", planned=2000, growth=10.0, **settings), "short warmup") is None


def test_clipping(tmp_path):
    run = recorded(tmp_path / "a", norm=4.0, max_grad_norm=1.0)
    assert said(run, "clipping").numbers == {"share": 1.0, "mean": 4.0, "limit": 1.0}
    assert "max_grad_norm = 1 is 0.25 times the mean norm of 4" in said(run, "clipping").text
    for limit in (0.0, 5.0, None):
        assert said(replace(run, settings={"max_grad_norm": limit}), "clipping") is None


def test_a_first_update_without_a_learning_rate(tmp_path):
    run = recorded(tmp_path / "a")
    wasted = [{**entry, "learning_rate": 0.0} if entry["step"] == 1 else entry for entry in run.log_history]
    assert said(replace(run, log_history=wasted), "wasted update")
    assert said(run, "wasted update") is None
    assert said(recorded(tmp_path / "all zero", log={"learning_rate": 0.0}), "wasted update") is None
    # Nothing logged at update 1, but the schedule is transformers' own.
    late = [entry for entry in run.log_history if entry["step"] > 2]
    hosts = {"warmup_type": None, "lr_scheduler_type": "cosine", "num_warmup_steps": 4}
    assert said(replace(run, log_history=late, settings=hosts), "wasted update")
    for other in ({"num_warmup_steps": 0}, {"warmup_type": "linear"}, {"optim": "adam_warmup"}):
        assert said(replace(run, log_history=late, settings=hosts | other), "wasted update") is None


def test_cut_short(tmp_path):
    assert said(recorded(tmp_path / "a", steps=5, planned=9), "cut short").numbers == {"update": 5, "planned": 9}
    assert said(recorded(tmp_path / "b", steps=9, planned=9), "cut short") is None


@pytest.mark.slow
def test_runs_that_really_trained(tmp_path):
    """The demo, 30 updates: Post-LN without a warmup is stalling by then, the others are not (FACTS of the README)."""
    arms = ["post:adamw:none", "post:adamw:linear", "post:radam:none", "pre:adamw:none"]
    jobs = plan(CompareArguments(arms=arms, seeds=[0], max_steps=30, warmup_steps=30, output_dir=str(tmp_path)))
    findings = {}
    for folder, settings in jobs.items():
        run_one(settings, folder)
        findings[folder.name] = {finding.rule: finding for finding in find(read_run(folder))}
    stalled = findings.pop("post-adamw-none-seed0")["stalling"]
    # beta2 = 0.98 asks for 100 updates, which this run does not have.
    assert stalled.numbers["ratio"] > DANGER_RATIO
    assert "encoder.layer.0" in stalled.text
    assert "encoder.layer.5" in stalled.text
    assert all("stalling" not in found for found in findings.values())
    assert "short warmup" in findings["post-adamw-linear-seed0"]  # 30 of 100
    assert "short warmup" not in findings["pre-adamw-none-seed0"]
