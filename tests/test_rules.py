"""Each rule on columns that it is about and on columns that it is not."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from math import cos, exp, inf, nan, pi
from pathlib import Path

import pytest

from hf_warmup.guard.rules import DANGER_RATIO, RULES, Records, smooth
from hf_warmup.report import find, read_run


STEPS = range(1, 101)
ADAMW = {"optim": "adamw", "adam_beta2": 0.99, "warmup_type": "none", "warmup_steps": 0, "lr_scheduler_type": "linear"}
RADAM = {"optim": "radam", "adam_beta2": 0.999, "lr_scheduler_type": "linear", "warmup_type": None}
TABLE = {rule.name: rule for rule in RULES}


def check(rule, records):
    return TABLE[rule].check(records, TABLE[rule].threshold)


def stack(ratio, name="encoder.layer", blocks=3):
    """Norms of a stack whose last block's is `ratio(t)` times its first block's."""
    first = {f"{name}.{i}": [1.0] * len(STEPS) for i in range(blocks - 1)}
    return first | {f"{name}.{blocks - 1}": [float(ratio(t)) for t in STEPS]}


def recorded(norms, settings=None, **columns):
    return Records(STEPS, norms, settings=settings or {}, num_training_steps=300, updates=100, **columns)


def logged(losses, every=10, settings=None, ended=True, metric=None, **columns):
    steps = [every * (i + 1) for i in range(len(losses))]
    log = {"loss": losses, **columns}
    log = {key.replace("__", "/"): (steps[: len(values)], list(values)) for key, values in log.items()}
    known = {"settings": settings or {}, "metric": metric, "ended": ended}
    return Records(log=log, num_training_steps=steps[-1], updates=steps[-1], **known)


def decayed(rate):
    """A loop without a known plan, with four updates of warmup."""
    rates = [min(rate(t), (t + 1) / 4) for t in range(60)]
    return Records(log={"effective_learning_rate": (range(1, 61), rates)}, updates=60)


def untuned(beta2):
    """A run of 1,000 updates with the untuned exponential warmup, before a linear decay."""
    rates = [(1 - exp(-(1 - beta2) * t)) * (1 - t / 1000) for t in range(1, 1001, 10)]
    settings = ADAMW | {"adam_beta2": beta2, "warmup_type": "untuned_exponential", "warmup_steps": 0}
    return logged([1.0] * 100, learning_rate=rates, settings=settings)


def used(*rates):
    return {"learning_rate": [2.0, 1.5, 1.0], "effective_learning_rate": rates}


def test_table_has_unique_names_conditions_and_sources():
    assert len(TABLE) == len(RULES)
    assert all(rule.source and rule.condition for rule in RULES)
    assert {rule.name for rule in RULES if rule.acts} <= {rule.name for rule in RULES if rule.live and rule.is_problem}
    assert DANGER_RATIO == 30.0  # as published


def test_smooth_is_the_running_median():
    assert smooth([1, 2, 3, 100, 5, 6]) == [3, 5]
    assert smooth([4.0, 2.0]) == [3.0]
    assert smooth([]) == []


def test_stalling_names_layer_ratio_and_updates():
    # The ratio is 100 from update 21 on: the median of five is 100 first around update 21, in 80 of 100 records.
    verdict = check("stalling", recorded(stack(lambda t: 100 if t > 20 else 1), ADAMW | {"norm_placement": "post"}))
    assert verdict.numbers == {"ratio": 100.0, "update": 21, "first": 21, "share": 0.8}
    assert verdict.layer == "encoder.layer.0"
    assert verdict.text.startswith(
        "The gradient of encoder.layer.0 is 100 times smaller than the gradient of encoder.layer.2"
    )
    assert verdict.text.endswith("The run is stalling.")
    # 2 / (1 - 0.99) = 200 updates: Ma & Yarats 2019.
    assert verdict.advice == (
        "Warm up for about 200 updates (2 / (1 - beta2)), use RAdam or use Pre-LN; lower the learning rate if that is "
        "not enough."
    )


def test_stalling_does_not_compare_blocks_of_growing_shapes():
    norms = stack(lambda t: 100 if t > 20 else 1, "encoder.stages")
    assert check("stalling", recorded(norms))
    assert check("stalling", recorded(norms, {"growing_stacks": ["encoder.stages"]})) is None


@pytest.mark.parametrize(
    ("ratio", "found"),
    [
        (lambda t: 29 if t > 1 else 1, None),
        (lambda t: 1000 if t in (40, 41) else 1, None),  # two odd batches
        (lambda t: 5000, None),  # high before the first update: a property of the model
        (lambda t: 100 if 20 < t <= 40 else 1, "The run stalled until update 40."),
        (lambda t: inf if t > 20 else 1, None),  # no norm is infinite
    ],
)
def test_stalling_needs_a_lasting_rise(ratio, found):
    verdict = check("stalling", recorded(stack(ratio)))
    assert verdict is None if found is None else verdict.text.endswith(found)


def test_stalling_names_the_worst_stack_and_a_dead_first_layer():
    norms = stack(lambda t: 40 if t > 5 else 1, "encoder.layers") | stack(
        lambda t: 900 if t > 5 else 1, "decoder.layers"
    )
    assert check("stalling", recorded(norms)).layer == "decoder.layers.0"
    norms["encoder.layers.0"] = [1.0] * 20 + [0.0] * 80
    verdict = check("stalling", recorded(norms))
    assert verdict.layer == "encoder.layers.0"
    assert "is exactly 0, unlike the gradient of encoder.layers.2" in verdict.text


def test_stalling_is_not_found_if_the_loss_has_halved_since():
    norms = stack(lambda t: 100 if t > 20 else 1)
    loss = {"loss": (STEPS, [3.0 if t <= 50 else 1.0 for t in STEPS])}
    assert check("stalling", recorded(norms, log=loss)) is None
    assert check("stalling", recorded(norms, log={"loss": (STEPS, [3.0] * 100)}))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"adam_beta2": 0.999}, "Warm up, use RAdam or use Pre-LN; lower"),  # 2000 of 300 updates
        ({"norm_placement": "pre"}, "Warm up for about 200 updates (2 / (1 - beta2)) or use RAdam; lower"),
        ({"optim": "sgd"}, "Warm up or use Pre-LN; lower the learning rate if that is not enough."),
        ({"optim": "radam", "norm_placement": "pre"}, "Warm up; lower the learning rate if that is not enough."),
        ({"norm_placement": None, "model_type": "bert", "optim": "sgd"}, "Warm up or use Pre-LN; lower"),
        ({"norm_placement": None, "model_type": "bert", "optim": "sgd", "_name_or_path": "a/b"}, "Warm up; lower"),
        ({"norm_placement": None, "model_type": "roberta", "optim": "sgd"}, "Warm up; lower"),  # has no Pre-LN
        (
            {"warmup_type": "linear", "warmup_steps": 0.5},
            "Use RAdam, use Pre-LN or lower the learning rate (the warmup took 150 updates, the stall began at 21).",
        ),
        (
            {"warmup_type": "linear", "warmup_steps": 9, "optim": "sgd", "norm_placement": "pre"},
            "Lower the learning rate (the warmup took 9 updates, the stall began at 21).",
        ),
    ],
)
def test_advice_against_stalling(settings, advice):
    settings = ADAMW | {"norm_placement": "post"} | settings
    assert check("stalling", recorded(stack(lambda t: 100 if t > 20 else 1), settings)).advice.startswith(advice)


def test_gradients_that_are_not_finite():
    records = recorded(stack(lambda t: 1), nonfinite={7: ["pooler"]})
    assert "1 of 100 recorded updates (1 %), first at update 7 in pooler" in check("gradient not finite", records).text
    assert check("gradient not finite", recorded(stack(lambda t: 1), {"fp16": True}, nonfinite={7: ["pooler"]})) is None
    assert check("no finite gradient", records) is None
    in_a_row = {t: ["pooler"] for t in range(7, 12)}
    assert check("no finite gradient", recorded(stack(lambda t: 1), nonfinite=in_a_row)).numbers["update"] == 11
    assert check("no finite gradient", recorded(stack(lambda t: 1), {"fp16": True}, nonfinite=in_a_row)) is None


# Rule, records it is about, words that its sentence has.
FOUND = [
    ("loss not finite", logged([2.0, 1.0, nan]), "update 30"),
    ("loss not finite", logged([2.1, 0, 0], grad_norm=[1.3, nan, nan]), "logged as 0 while the gradient norm is not"),
    ("loss not finite", logged([2.0] * 3, nonfinite_losses=[1.0]), "update 10"),
    ("evaluation not finite", logged([5.9, 5.5], eval_loss=[nan, nan]), "2 of 2 evaluations, first at update 10"),
    ("nothing trained", logged([0.0] * 10, grad_norm=[0.0] * 10), "exactly 0 in all 10"),
    ("loss rises", logged([1.6, 10.4, 10.3, 10.4, 10.4, 10.4]), "from 1.6 to 10.4 at update 20 and stays above 10.3"),
    ("loss rises", logged([1.0, 1.2, 1.5, 1.9, 2.4, 3.0, 3.6, 4.2, 4.8, 5.5]), "from 1 in the first tenth"),
    ("loss is lost", logged([4 - 0.03 * t if t <= 100 else 3.0 for t in range(1, 201)]), "% of the fall is lost"),
    ("flat loss", logged([9.0] + [1.3863] * 20), "ln 4 = 1.386 is the loss of a guess among 4"),
    ("flat loss", logged([4.682] * 20, settings={"vocab_size": 108}), "ln 108 = 4.682"),
    ("overfitting", logged([1, 0.5, 0.3], eval_loss=[0.5, 0.8, 1.2], eval_f1=[0.7, 0.9, 0.8], metric=("eval_f1", True)),
     "140 % higher, 1.2, at update 30; eval_f1 was best, 0.9, at update 20"),
    ("overfitting", logged([1] * 3, eval_loss=[0.5, 0.8, 1.2], eval_wer=[40, 32, 32.1], metric=("eval_wer", False)),
     "eval_wer is as good as ever: best, 32, at update 20 (32.1 at the end)."),
    ("never left the warmup", logged([1.0] * 3, learning_rate=[1e-5, 2e-5, 3e-5]), "still rises"),
    ("long warmup", logged([1.0] * 6, learning_rate=[1, 2, 3, 2, 1, 0.5]), "about 30 of 60 updates (50 %)"),
    ("long warmup", untuned(0.995), "about 400 of 1000 updates (40 %)"),
    ("schedule restarts", logged([0.1, 0.1, 3.0, 2.0], learning_rate=[2, 1, 0, 1]), "at update 30"),
    ("schedule restarts", logged([0.1, 0.1, 3.0, 2.0], learning_rate=[2, 0, 2, 1]), "at update 20"),
    ("skipped updates", logged([2.0, 1.0, 0.9], grad_norm=[1.0, nan, 1.0], learning_rate=[3, 3, 2]), "did not move"),
    ("norm at the loss scale", logged([2.0, 1.0], grad_norm=[5e5, 2e5]), "350,000"),
    ("Noam's peak", logged([1.0], learning_rate=[2.9e-8], settings={"lr_scheduler_type": "noam"}), "2.9e-08"),
    ("Noam's peak", logged([1.0], learning_rate=[0.3], settings={"lr_scheduler_type": "noam"}), "0.3"),
    ("clipping", logged([1.0], grad_norm=[4.0], settings={"max_grad_norm": 1.0}), "0.25 times the mean norm of 4"),
    ("wasted update", logged([1.0, 1.0], every=1, learning_rate=[0.0, 0.1]), "learning rate 0"),
    ("rectification", logged([1.0] * 3, settings=RADAM, **used(0.2, 0.7, 0.3)), "most 35 %"),
    ("reward log", logged([0.0] * 3, reward=[0.1, 0.2, 0.3]), "reward 0.1 to 0.3"),
    ("reward log", logged([0.0] * 3, **{"objective/kl": [0.1, 0.2, 0.3]}), "objective/kl 0.1 to 0.3"),
    ("little logged", logged([1.0, 0.9]), "Only 2 training losses"),
    ("little logged", logged([1.0]), "Only 1 training loss was logged"),
    ("rewound", Records(rewinds=([10, 39], [25, 50])), "after update 10, 39; the last warmup takes 50 updates"),
    (
        "number of processes",
        Records(log={"former_num_processes": ([4, 9], [2, 1]), "num_processes": ([4, 9], [1, 3])}),
        "from 2 to 1 after update 4, and from 1 to 3 after update 9.",
    ),
    ("incomplete recording", Records(gaps=[(1, 4), (7, 7)]), "The recording lacks updates 1 to 4, 7."),
    ("planned length", decayed(lambda t: 1 - t / 100), "42.3 % of its peak at the last update, 60: the decay"),
    ("planned length", decayed(lambda t: 0.5 + cos(pi * max(0, t - 3) / 97) / 2), "planned to end at 100."),
]  # fmt: skip
# Rule, records that look alike but are sound.
SOUND = [
    ("planned length", decayed(lambda t: 1 - t / 60)),
    ("planned length", decayed(lambda t: (t + 1) ** -0.5)),
    ("planned length", decayed(lambda t: 1.0)),
    ("loss not finite", logged([2.0, 0.0, 0.0], grad_norm=[1.0, 0.1, 0.0])),
    ("nothing trained", logged([0.0] * 10, grad_norm=[0.1] * 10)),
    ("loss rises", logged([1.6, 10.4, 1.5, 1.4, 1.3, 1.2])),
    ("loss rises", logged([0.1 * i for i in range(1, 12)], reward=[0.1] * 11)),
    ("loss is lost", logged([4.0 if t < 50 else 1.5 for t in range(200)])),
    ("loss is lost", logged([4.0 + (t % 2) for t in range(200)])),
    ("flat loss", logged([6.9, 6.9, 6.9, 4.8, *[4.8 - 0.02 * i for i in range(16)]])),  # an ordinary fine-tune
    ("flat loss", logged([0.7] * 20, every=1)),
    ("overfitting", logged([1, 0.5, 0.3], eval_loss=[0.5, 0.4, 0.43])),
    ("never left the warmup", logged([1.0] * 3, learning_rate=[1e-5, 2e-5, 3e-5], ended=False)),
    ("never left the warmup", logged([1.0] * 3, learning_rate=[1e-5, 1e-5, 1e-5])),
    ("never left the warmup", replace(logged([1.0] * 3, learning_rate=[1e-5, 2e-5, 3e-5]), num_training_steps=500)),
    ("long warmup", untuned(0.98)),
    ("long warmup", logged([1.0] * 100, learning_rate=[1 - exp(-0.2 * t) for t in range(100)])),  # of another library
    ("long warmup", logged([1.0] * 10, learning_rate=[1, 2, 2, 2, 2, 2, 2, 2, 2, 1])),
    ("schedule restarts", logged([1.0] * 4, learning_rate=[2, 1, 2, 1], settings={"lr_scheduler_type": "greedy"})),
    ("schedule restarts", Records(log={"learning_rate": ([1, 2, 3], [2, 0.1, 1])}, rewinds=([1], [25]))),
    ("skipped updates", logged([1.0] * 3, grad_norm=[1.0] * 3)),
    ("norm at the loss scale", logged([2.0, 1.0], grad_norm=[500.0, 200.0])),
    ("Noam's peak", logged([1.0], learning_rate=[7e-4], settings={"lr_scheduler_type": "noam"})),
    ("clipping", logged([1.0], grad_norm=[4.0], settings={"max_grad_norm": 5.0})),
    ("clipping", logged([1.0], grad_norm=[4.0], settings={"max_grad_norm": 0.0})),
    ("wasted update", logged([1.0, 1.0], every=1, learning_rate=[0.0, 0.0])),
    ("wasted update", logged([1.0] * 2, every=1, settings=RADAM, learning_rate=[0.0, 0.1])),
    ("rectification", logged([1.0] * 3, settings=RADAM, **used(0.2, 1.1, 0.3))),
    ("rectification", logged([1.0] * 3, settings=RADAM, **used(0.1, 0.2, 0.3), ended=False)),
    ("rectification", logged([1.0] * 3, settings=ADAMW, **used(0.2, 0.7, 0.3))),
    ("reward log", logged([1.0] * 3, eval_loss=[1.0])),
    ("little logged", logged([1.0] * 3)),
    ("planned length", logged([1.0] * 3)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "records", "words"), FOUND)
def test_rule_finds(rule, records, words):
    assert words in check(rule, records).text


@pytest.mark.parametrize(("rule", "records"), SOUND)
def test_rule_passes_sound_records(rule, records):
    assert check(rule, records) is None


def test_spike_needs_loss_and_norm_and_names_the_layer():
    loss = [1.0 + 0.01 * (t % 3) for t in STEPS]
    norms = stack(lambda t: 1 + 0.01 * (t % 4))
    norms["encoder.layer.0"] = [1.0 + 0.01 * (t % 4) for t in STEPS]
    loss[59] = 5.0  # update 60
    total = [1.0 + 0.01 * (t % 4) for t in STEPS]
    quiet = recorded(norms, log={"loss": (STEPS, loss), "grad_norm": (STEPS, total)})
    assert check("spike", quiet) is None
    norms["encoder.layer.0"][58] = total[58] = 50.0  # one update before the loss follows
    loud = recorded(norms, log={"loss": (STEPS, loss), "grad_norm": (STEPS, total)})
    verdict = check("spike", loud)
    assert (verdict.numbers["update"], verdict.layer) == (60, "encoder.layer.0")


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"warmup_type": "linear", "num_warmup_steps": 100, "adam_beta2": 0.999}, 0.05),
        ({"warmup_type": None, "num_warmup_steps": 0.05, "adam_beta2": 0.999}, 0.0075),  # 15 of 2000 updates
        ({"warmup_type": "none", "warmup_steps": 100}, 0.0),
        ({"warmup_type": None, "lr_scheduler_type": "constant", "warmup_steps": 300}, 0.0),
        ({"optim": "adam_warmup", "warmup_type": None, "num_warmup_steps": 50}, 0.25),
        ({"warmup_type": "linear", "warmup_steps": 150}, None),
        ({"warmup_type": "untuned_linear", "warmup_steps": 0}, None),
        ({"optim": "radam"}, None),
        ({"norm_placement": "pre"}, None),
        ({"norm_placement": None, "model_type": "roberta"}, 0.0),
        ({"norm_placement": None, "model_type": "llama"}, None),
    ],
)
def test_short_warmup_compares_with_two_over_one_minus_beta2(settings, share):
    verdict = check("short warmup", recorded(stack(lambda t: 4), ADAMW | {"norm_placement": "post"} | settings))
    assert (verdict and verdict.numbers["share"]) == share
    if share == 0.05:
        assert verdict.text == (
            "A warmup of 100 updates is 5 % of the usual 2 / (1 - beta2) = 2000 at beta2 = 0.999. The recorded norms "
            "show no need of more at this learning rate (last/first-block ratio at most 4, limit 30); a higher rate "
            "may need it."
        )


def test_short_warmup_is_silent_where_the_advice_against_stalling_has_the_length():
    records = recorded(stack(lambda t: 100 if t > 20 else 1), ADAMW | {"norm_placement": "post"})
    assert check("short warmup", records) is None


def test_planned_length_states_where_the_decay_stopped():
    log = {"learning_rate": ([10, 20], [1.0, 0.6])}
    records = Records(log=log, num_training_steps=50, updates=20, ended=True)
    assert check("planned length", records).text == (
        "The run ended at update 20 of 50 planned, where the decay had reached 60 % of the peak learning rate."
    )


def test_planned_length_says_that_the_run_was_inside_its_warmup():
    records = replace(logged([1.0] * 3, learning_rate=[1e-5, 2e-5, 3e-5]), num_training_steps=500)
    assert check("planned length", records).text == "The run ended at update 30 of 500 planned, inside its warmup."


def test_rule_names_the_columns_it_lacks():
    assert TABLE["stalling"].missing(logged([1.0])) == ["blocks"]
    assert TABLE["stalling"].missing(recorded(stack(lambda t: 1))) == []
    assert TABLE["stalling"].missing(recorded({"embeddings": [1.0] * 100})) == ["blocks"]
    assert TABLE["clipping"].missing(recorded(stack(lambda t: 1), ADAMW)) == []
    assert TABLE["spike"].missing(logged([1.0])) == ["norms|grad_norm"]


@pytest.mark.real_data
@pytest.mark.skipif("HF_WARMUP_DATA" not in os.environ, reason="HF_WARMUP_DATA names no folder with the data")
def test_rules_tell_every_note_of_public_logs_without_false_alarms():
    folder = Path(os.environ["HF_WARMUP_DATA"]) / "trainer_states"
    # Words in a note of expected.tsv, and the rules that tell it.
    told = {
        "RL or preference": {"reward log"},
        "gradient norm not finite": {"skipped updates", "loss not finite"},
        "nothing was logged": {"little logged"},
        "too little was logged": {"little logged"},
        "evaluation loss not finite": {"evaluation not finite"},
        "schedule begins a": {"schedule restarts"},
        "loss flat": {"flat loss"},
        "loss rises": {"loss rises"},
        "nothing is trained": {"nothing trained"},
        "at the fp16 loss scale": {"norm at the loss scale"},
    }
    untold, alarms = [], []
    rows = (folder / "expected.tsv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(rows, delimiter="\t"):
        found = {finding.rule: finding for finding in find(read_run(folder / row["file"]))}
        expected = [rules for words, rules in told.items() if words in row["notes"]]
        untold += [(row["file"], rules) for rules in expected if not rules & found.keys()]
        if row["warmup"].startswith("never left") and "never left the warmup" not in found:
            untold.append((row["file"], "never left the warmup"))
        explained = set().union(*expected)
        alarms += [(row["file"], name) for name, each in found.items() if each.is_problem and name not in explained]
    assert not untold
    assert len(alarms) <= 2, alarms
