"""The guard warns, stops and rewinds, and a resumed run decides as the one that was not interrupted."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from enum import Enum
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_warmup import (
    AdamWarmup,
    GIAdam,
    GradientNormRecorder,
    RAdam,
    WarmupGuard,
    WarmupTrainer,
    get_scheduler,
    preview_schedule,
    with_warmup,
)
from hf_warmup.accelerate_utils import create_scheduler
from hf_warmup.guard import callback
from hf_warmup.guard.callback import RestartedWarmup, Snapshot
from hf_warmup.optim import effective_learning_rates
from hf_warmup.report import find, plot_loss, read_run
from hf_warmup.report.findings import Finding
from hf_warmup.schedules import linear_warmup

from . import processes
from .testing_utils import arguments, column, examples, run, tiny_bert, train


STALLING = Finding(
    "stalling", True, "The run is stalling.", {"update": 1}, "Warm up.", "encoder.layer.0", 30.0, "a test"
)


@pytest.fixture
def stalls_at(monkeypatch):
    """Let the rules find a stall at the given updates, and nothing else."""

    def patch(*updates):
        monkeypatch.setattr(callback, "apply", lambda rules, records: [STALLING] * (records.updates in updates))

    return patch


def linear(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))


def update(model, optimizer, seed):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def contents(model, optimizer):
    state = optimizer.state_dict()["state"]
    return [*model.state_dict().values(), *(value for each in state.values() for value in each.values())]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: RAdam(p, lr=0.1),
        lambda p: AdamWarmup(p, lr=0.1, warmup_steps=4),
    ],
)
@pytest.mark.parametrize("before", [0, 7])
def test_snapshot_restores_parameters_buffers_and_optimizer_bit_for_bit(make, before):
    model = linear()
    optimizer = make(model.parameters())
    for seed in range(before):
        update(model, optimizer, seed)
    snapshot = Snapshot.take(before, model, optimizer)
    kept = [value.clone() for value in contents(model, optimizer)]
    for _ in range(2):  # a snapshot can be restored more than once
        for seed in range(10):
            update(model, optimizer, 100 + seed)
        snapshot.restore(model, optimizer)
        restored = contents(model, optimizer)
        assert len(restored) == len(kept)
        assert all(map(torch.equal, restored, kept))


def test_restarted_warmup_is_linear_from_the_rewind():
    warmup = RestartedWarmup()
    assert [warmup(step) for step in (0, 9)] == [1.0, 1.0]
    warmup.load_state_dict({"start": 10, "length": 4})
    assert [warmup(step) for step in (10, 11, 13, 20)] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        lambda p: RAdam(p, lr=0.1, degenerated_to_sgd=True, weight_decay=0.1),
        lambda p: RAdam(p, lr=0.1, foreach=True),
        lambda p: GIAdam(p, lr=0.1),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 9])
def test_update_with_a_nonfinite_gradient_changes_nothing(make, before):
    model, other = linear(), linear()
    optimizer, plain = make(model.parameters()), make(other.parameters())
    recorder = GradientNormRecorder(None)
    guard = WarmupGuard("stop", recorder)
    guard.start(model, optimizer, None)
    for seed in range(before):
        update(model, optimizer, seed)
        update(other, plain, seed)
    for record in (True, False):
        optimizer.zero_grad()
        (model[0].weight.sum() * float("inf")).backward()
        if record:
            recorder.record(model.named_parameters(), step=2)
        guard.before_step(2)
        optimizer.step()
        guard.after_step(2)
        recorder.flush()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    for seed in range(7):  # the later updates are those of a run without the skipped ones
        update(model, optimizer, 100 + seed)
        update(other, plain, 100 + seed)
    assert all(map(torch.equal, contents(model, optimizer), contents(other, plain)))


def test_warn_logs_each_kind_once(tmp_path, stalls_at, caplog):
    stalls_at(5, 10)
    with caplog.at_level(logging.WARNING):
        run(tmp_path, max_steps=12)
    assert [record.message for record in caplog.records if "stalling" in record.message] == [
        "Update 5: The run is stalling. Warm up."
    ]


class AlertLevel(Enum):
    WARN = "warn"


class TrackioRun:
    """The alert of trackio 0.43, whose `level` is a member of its enumeration."""

    def __init__(self, sent):
        self.sent = sent

    def alert(self, title: str, text: str | None = None, level=AlertLevel.WARN, step=None, webhook_url=None):
        self.sent.append((title, text, level.value))


class WandbRun(TrackioRun):
    """The alert of W&B 0.31, whose `level` is INFO unless it is given."""

    def alert(self, title: str, text: str, level=None, wait_duration=None):
        self.sent.append((title, text, level.value if level else "info"))


def trackers(trackio_run, wandb_run):
    """The attributes of trackio and wandb that the guard reads."""
    run = SimpleNamespace(get=lambda: trackio_run)
    return {
        "trackio": SimpleNamespace(AlertLevel=AlertLevel, context_vars=SimpleNamespace(current_run=run)),
        "wandb": SimpleNamespace(AlertLevel=AlertLevel, run=wandb_run),
    }


def tell(**modules):
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        WarmupGuard()._tell(STALLING, 5)


def test_finding_is_an_alert_of_each_tracker_in_use(caplog):
    sent = []
    tell(**trackers(TrackioRun(sent), WandbRun(sent)))
    assert sent == [("stalling at update 5", "Update 5: The run is stalling. Warm up.", "warn")] * 2
    tell(**trackers(None, None))  # imported, without a run
    assert len(sent) == 2
    assert len(caplog.records) == 2  # the findings


def test_alert_that_fails_is_logged(caplog):
    tell(**trackers(object(), None))
    assert "trackio did not take the alert of update 5: AttributeError" in caplog.text


@pytest.mark.parametrize(("name", "stand_in"), [("trackio", TrackioRun), ("wandb", WandbRun)])
def test_alerts_of_the_stand_ins_have_the_signatures_of_the_packages(name, stand_in):
    package = pytest.importorskip(name)
    signature = inspect.signature(package.Run.alert)
    assert list(signature.parameters) == list(inspect.signature(stand_in.alert).parameters)
    assert package.AlertLevel.WARN.value.lower() == "warn"
    tell(**{name: package})  # no run is in progress


def test_stop_ends_training_and_saves_no_checkpoint(tmp_path, stalls_at, caplog):
    stalls_at(10)
    trainer = WarmupTrainer(
        tiny_bert(), arguments(tmp_path, guard="stop", max_steps=20, save_strategy="steps", save_steps=5),
        train_dataset=examples(),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 10
    assert trainer.guard.stopped_by is STALLING
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    assert "Training stops here and saves no checkpoint. Warm up." in caplog.text


def guarded(folder, **kwargs):
    options = {"guard": "rewind", "max_steps": 30, "lr_scheduler_type": "linear", "warmup_type": "none"} | kwargs
    return WarmupTrainer(tiny_bert(), arguments(folder, **options), train_dataset=examples())


def test_best_model_is_not_looked_for_before_a_rewind(tmp_path, stalls_at):
    """The evaluation loss falls until the rewind at update 10; what it fell to is given up with the weights."""
    stalls_at(10)
    losses = {4: 2.0, 8: 1.0, 12: 3.0, 16: 2.5}
    kwargs = {"max_steps": 16, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    args = arguments(tmp_path, guard="rewind", load_best_model_at_end=True, **kwargs)
    trainer = WarmupTrainer(tiny_bert(), args, train_dataset=examples(), eval_dataset=examples())
    trainer.evaluate = lambda *_, **__: {"eval_loss": losses[trainer.state.global_step]}
    trainer.train()
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (2.5, 16)


def test_rewind_restores_the_start_and_warms_up_again(tmp_path, stalls_at):
    stalls_at(10, 20)
    trainer = guarded(tmp_path)
    log = train(trainer)
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    base = trainer.args.learning_rate
    # The decay goes on: (30 - step) / 30. After the rewinds a warmup of 25 and then of 50 updates multiplies it.
    assert rates[10] == pytest.approx(base * 21 / 30)
    assert rates[11] == pytest.approx(base * 20 / 30 * 1 / 25)
    assert rates[20] == pytest.approx(base * 11 / 30 * 10 / 25)
    assert rates[21] == pytest.approx(base * 10 / 30 * 1 / 50)
    assert trainer.state.global_step == 30
    assert trainer.guard.rewinds == [
        {"step": 10, "to": 0, "warmup_steps": 25},
        {"step": 20, "to": 0, "warmup_steps": 50},
    ]
    assert [entry["rewound_to"] for entry in trainer.state.log_history if "rewound_to" in entry] == [0, 0]
    trainer.save_state()
    (axes,) = plot_loss(tmp_path).axes
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "v"] == [[10, 20]]
    (finding,) = [finding for finding in find(read_run(tmp_path)) if finding.rule == "rewound"]
    assert "after update 10, 20; the last warmup takes 50 updates" in finding.text


def test_weights_after_a_rewind_are_those_of_the_snapshot(tmp_path, stalls_at):
    stalls_at(5)
    start = [p.clone() for p in tiny_bert().parameters()]
    trainer = guarded(tmp_path, max_steps=5)
    trainer.train()
    assert all(map(torch.equal, trainer.model.parameters(), start))
    assert not trainer.optimizer.optimizer.state


def test_rewind_changes_no_bit_of_a_run_that_needs_none(tmp_path):
    logs = [run(tmp_path / guard, guard=guard, max_steps=12, warmup_steps=4) for guard in ("off", "rewind")]
    assert column(logs[0], "loss") == column(logs[1], "loss")
    assert column(logs[0], "learning_rate") == column(logs[1], "learning_rate")


def test_run_killed_after_a_rewind_resumes_to_the_same_bits(tmp_path, stalls_at):
    stalls_at(10, 20)
    options = {"save_strategy": "steps", "save_steps": 15}
    whole = guarded(tmp_path / "whole", **options)
    log = train(whole)
    resumed = guarded(tmp_path / "whole", **options)
    log_resumed = train(resumed, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-15"))
    assert resumed.guard.rewinds == whole.guard.rewinds  # the second rewind restores the start from the checkpoint
    assert all(map(torch.equal, whole.model.parameters(), resumed.model.parameters()))
    assert column(log, "loss") == column(log_resumed, "loss")


def test_snapshot_is_renewed_while_the_run_is_sound(tmp_path, stalls_at):
    stalls_at(20)
    trainer = guarded(tmp_path)
    trainer.guard.snapshot_steps = 10
    trainer.train()
    assert trainer.guard.rewinds == [{"step": 20, "to": 10, "warmup_steps": 25}]


def test_rewind_stops_after_max_rewinds(tmp_path, stalls_at, caplog):
    stalls_at(5, 10)
    trainer = guarded(tmp_path, guard_max_rewinds=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 10
    assert "1 rewind and a warmup of 25 updates did not help: lower the learning rate" in caplog.text


def test_nonfinite_losses_hidden_by_the_trainer_are_counted(tmp_path, caplog):
    class Diverging(WarmupTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("nan") if self.state.global_step == 2 else loss

    trainer = Diverging(tiny_bert(), arguments(tmp_path, max_steps=6, guard="stop"), train_dataset=examples())
    with caplog.at_level(logging.WARNING):
        log = train(trainer)
    assert {entry["step"]: entry["nonfinite_losses"] for entry in log if "nonfinite_losses" in entry} == {3: 1}
    assert "The training loss was not finite from update 3 on" in caplog.text
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())  # the update was skipped


def test_rewind_with_a_schedule_that_follows_a_metric_raises_before_training(tmp_path):
    args = arguments(tmp_path, guard="rewind", lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps")
    trainer = WarmupTrainer(tiny_bert(), args, train_dataset=examples(), eval_dataset=examples())
    with pytest.raises(ValueError, match="follows a metric"):
        trainer.train()


@pytest.mark.parametrize(("action", "fused", "fetches"), [("warn", False, 2), ("rewind", True, 2), ("stop", False, 12)])
def test_guard_fetches_numbers_at_checks_only(monkeypatch, action, fused, fetches):
    """Ten updates: two checks, and one number per update where the optimizer cannot skip an update by itself."""
    model = torch.nn.ModuleDict({"h": torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(2)])})
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    recorder = GradientNormRecorder(None)
    guard = WarmupGuard(action, recorder)
    scheduler = guard.wrap_scheduler(get_scheduler("constant", optimizer))
    guard.start(model, optimizer, scheduler)
    counted = []
    for step in range(1, 11):
        model["h"][1](model["h"][0](torch.ones(3))).sum().backward()
        recorder.record(model.named_parameters(), step)
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__"):
                original = getattr(torch.Tensor, name)
                patch.setattr(
                    torch.Tensor,
                    name,
                    lambda self, *args, of=original: (counted.append(of.__name__), of(self, *args))[1],
                )
            guard.count_loss(torch.tensor(1.0))
            guard.before_step(step)
            guard.after_step(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert len(counted) == fetches, counted


def test_guard_names_the_rules_that_remain_without_blocks(tmp_path, caplog):
    recorder = GradientNormRecorder(None)
    guard = WarmupGuard("stop", recorder)
    model = linear()
    guard.start(model, torch.optim.SGD(model.parameters(), lr=0.1), None)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 11):
            recorder.listener([{"step": step, "grad_norm": 1.0, "grad_norm/head": 1.0}])
            guard.after_step(step)
    (message,) = [record.message for record in caplog.records]
    assert "cannot check the rule stalling. It checks gradient not finite, no finite gradient" in message


def layerwise(model):
    """Of one parameter: the scheduler of transformers 4.57 for more of them fails in torch 2.13."""
    first = next(model.parameters())
    return LayerWiseDummyOptimizer({first: torch.optim.SGD([first], lr=0.1)}, lr=0.1)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (linear().to("meta"), "parameters that are offloaded"),
        (type("DeepSpeedEngine", (torch.nn.Linear,), {"__module__": "deepspeed.runtime"})(2, 2), "a DeepSpeed"),
    ],
)
def test_rewind_of_state_that_cannot_be_restored_raises_before_training(model, reason):
    optimizer, guard = adamw(model), WarmupGuard("rewind")
    scheduler = guard.wrap_scheduler(get_scheduler("constant", optimizer))
    with pytest.raises(ValueError, match=f"guard='rewind' cannot restore {reason}.*Use guard='stop'"):
        guard.start(model, optimizer, scheduler)


LOMO = type("AdaLomo", (torch.optim.SGD,), {"__module__": "lomo_optim.adalomo"})  # which needs a GPU


@pytest.mark.parametrize("make", [layerwise, lambda model: LOMO(model.parameters(), lr=0.1)])
def test_rewind_with_a_layer_wise_optimizer_raises_before_training(tmp_path, make):
    model = tiny_bert()
    args = arguments(tmp_path, guard="rewind")
    trainer = WarmupTrainer(model, args, train_dataset=examples(), optimizers=(make(model), None))
    with pytest.raises(ValueError, match="guard='rewind' cannot restore a layer-wise optimizer"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("take", "No snapshot could be taken at update 0. The guard continues with warnings only. The error was Runt"),
        ("restore", "The guard could not check the rules or act at update 5. Training continues."),
    ],
)
def test_guard_that_cannot_act_logs_and_lets_the_run_continue(
    tmp_path, stalls_at, monkeypatch, caplog, method, message
):
    def fail(*args):
        raise RuntimeError("no memory")

    stalls_at(5, 10)
    monkeypatch.setattr(Snapshot, method, fail)
    trainer = guarded(tmp_path, max_steps=12)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 12
    assert trainer.guard.rewinds == []
    assert caplog.text.count(message) == 1


def test_guard_without_a_recorder_judges_sparse_gradients():
    model = torch.nn.Embedding(4, 3, sparse=True)
    optimizer, guard = torch.optim.SGD(model.parameters(), lr=0.1), WarmupGuard("stop")
    guard.start(model, optimizer, None)
    (model(torch.tensor([1, 2])).sum() * float("nan")).backward()
    guard.before_step(1)
    assert model.weight.grad is None  # the update is skipped


def test_rewind_accepts_a_scheduler_from_the_user_and_raises_for_one_that_it_cannot_restart(tmp_path, stalls_at):
    stalls_at(5)
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    args = arguments(tmp_path, guard="rewind", max_steps=6)
    trainer = WarmupTrainer(
        model, args, train_dataset=examples(), optimizers=(optimizer, get_scheduler("constant", optimizer))
    )
    log = train(trainer)
    assert column(log, "learning_rate") == pytest.approx([0.01] * 5 + [0.01 / 25])
    with pytest.raises(ValueError, match="not passed through the guard"):
        WarmupGuard("rewind").start(model, optimizer, get_scheduler("constant", optimizer))


def test_auto_starts_without_a_warmup_and_rewinds(tmp_path, stalls_at):
    stalls_at(10)
    log = run(tmp_path, warmup_type="auto", lr_scheduler_type="constant", max_steps=12)
    assert column(log, "learning_rate") == pytest.approx([0.01] * 10 + [0.01 / 25, 0.01 * 2 / 25])
    log = run(tmp_path, warmup_type="auto", lr_scheduler_type="constant", max_steps=20, warmup_steps=20)
    assert column(log, "learning_rate")[:2] == pytest.approx([0.01 / 20, 0.01 * 2 / 20])
    assert column(log, "learning_rate")[10:] == pytest.approx([0.01 * t / 40 for t in range(1, 11)])


def scheduled(kind, optimizer):
    """A schedule with a warmup of 20 updates, made as users make it."""
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return {
        "composed": lambda: get_scheduler("linear", optimizer, 20, 100, warmup_type="linear"),
        "transformers": lambda: get_scheduler("constant_with_warmup", optimizer, 20, 100),
        "with_warmup": lambda: with_warmup(constant, partial(linear_warmup, num_warmup_steps=20)),
        "per_update": lambda: create_scheduler(optimizer, "linear", 20, 100, warmup_type="linear"),
        "adam_warmup": lambda: get_scheduler("constant", optimizer, 20, 100),
    }[kind]()


@pytest.mark.parametrize("kind", ["composed", "transformers", "with_warmup", "per_update", "adam_warmup"])
def test_rewind_within_a_warmup_begins_one_ramp_of_twice_its_length(kind, stalls_at):
    stalls_at(10)
    model = linear()
    own = kind == "adam_warmup"
    optimizer = (
        AdamWarmup(model.parameters(), lr=1.0, betas=(0.9, 0.99))
        if own
        else torch.optim.SGD(model.parameters(), lr=1.0)
    )
    guard = WarmupGuard("rewind")
    scheduler = guard.wrap_scheduler(scheduled(kind, optimizer))
    guard.start(model, optimizer, scheduler)
    rates = []
    for step in range(1, 60):
        update(model, optimizer, step)
        rates += effective_learning_rates(optimizer)
        scheduler.step()
        guard.after_step(step)
    decay = [min(1.0, (100 - step) / 80) if kind in ("composed", "per_update") else 1.0 for step in range(59)]
    assert guard.rewinds == [{"step": 10, "to": 0, "warmup_steps": 40}]
    assert rates[10:] == pytest.approx([decay[step] * min(1.0, (step - 9) / 40) for step in range(10, 59)])


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"guard": "off"}, "guard='off' does not rewind"),
        ({"grad_norm_steps": 0}, "records no gradient norms"),
        ({"optim": "adam_warmup"}, "has a warmup of its own"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}, "follows a metric"),
    ],
)
def test_auto_where_the_run_cannot_be_rewound_raises(tmp_path, kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        arguments(tmp_path, warmup_type="auto", **kwargs)


def test_auto_with_a_scheduler_or_adam_warmup_from_the_user_raises(tmp_path):
    model = tiny_bert()
    optimizer = adamw(model)
    for pair in (
        (optimizer, get_scheduler("constant", optimizer)),
        (AdamWarmup(model.parameters(), warmup_steps=4), None),
    ):
        with pytest.raises(ValueError, match=r"(WarmupLR|AdamWarmup), which has its own, was passed via"):
            WarmupTrainer(model, arguments(tmp_path, warmup_type="auto"), optimizers=pair)


def test_preview_says_that_the_warmup_of_auto_is_not_known(tmp_path):
    args = arguments(tmp_path, warmup_type="auto", lr_scheduler_type="linear", max_steps=16)
    assert "auto:linear, until the guard rewinds" in preview_schedule(args).table()


def test_guard_in_a_loop_rewinds_on_recorded_norms(tmp_path):
    """Norms whose ratio grows tenfold at update 3, as rows of a recorder."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    recorder = GradientNormRecorder(tmp_path / "gradient_norms.jsonl")
    guard = WarmupGuard("rewind", recorder, num_warmup_steps=20)
    scheduler = guard.wrap_scheduler(get_scheduler("constant", optimizer))
    guard.start(model, optimizer, scheduler)
    start = [p.clone() for p in model.parameters()]
    for step in range(1, 11):
        ratio = 100.0 if 3 <= step <= 10 else 1.0
        recorder.listener([{"step": step, "grad_norm/h.0": 1.0, "grad_norm/h.1": ratio}])
        update(model, optimizer, step)
        scheduler.step()
        assert not guard.after_step(step)
    assert guard.rewinds == [{"step": 5, "to": 0, "warmup_steps": 40}]  # after which 100 is the first ratio
    assert scheduler.get_last_lr() == [pytest.approx(6 / 40)]
    assert not all(map(torch.equal, model.parameters(), start))


@pytest.mark.multiprocess
@pytest.mark.parametrize("wrapping", ["ddp", "fsdp2"])
def test_processes_rewind_and_resume_alike_to_the_bits_of_their_snapshots(tmp_path, wrapping):
    done = processes.run(*processes.torchrun(2), processes.ROOT / "tests/workers/guarded.py", tmp_path, wrapping)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    whole = ranks[0]["whole"]
    assert whole["rewinds"] == [
        {"step": 10, "to": 5, "warmup_steps": 25},
        {"step": 20, "to": 5, "warmup_steps": 50},
    ]
    for key in ("rewinds", "weights"):  # the second rewind of a resumed run restores the snapshot of the checkpoint
        assert all(rank[run][key] == whole[key] for rank in ranks for run in ("whole", "resumed")), key
    assert all(rank["whole"]["restored"] == [True, True] for rank in ranks)
    assert all(rank["whole"]["copied"] == rank["whole"]["local"] for rank in ranks)
    copied = sum(rank["whole"]["copied"] for rank in ranks)
    assert copied == whole["all"] * (2 if wrapping == "ddp" else 1)  # of sharded parameters each copies its part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("placement", "seed", "by"), [("post", 0, 15), ("post", 1, 20), ("post", 2, 15), ("pre", 0, None)]
)
def test_rewind_solves_the_demo_that_fails_without_a_warmup(tmp_path, placement, seed, by):
    """The ratio of seed 1 passes 30 at update 16, so that a guard that checks every 5 updates acts at 20."""
    from scripts.reproductions.reversal import job, run_one

    settings = job(placement, "adamw", "none", 2e-3, 300, seed=seed) | {"guard": "rewind"}
    result = run_one(settings, tmp_path / "run")
    assert result["steps_to_loss_0.5"] is not None
    rewinds = read_run(tmp_path / "run").recorded("rewound_to")
    assert (len(rewinds.steps) > 0) is (placement == "post")
    assert all(step <= by for step in rewinds.steps[:1])
