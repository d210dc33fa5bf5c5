"""The Trainer's doors: the same run through each, stopped and resumed, accumulated, and recorded."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_warmup import (
    AdamWarmup,
    BertPreLNConfig,
    BertPreLNForSequenceClassification,
    WarmupTrainer,
    WarmupTrainerMixin,
    create_optimizer_and_scheduler,
    with_warmup,
)
from hf_warmup.norms import GRADIENT_NORMS_FILE, read_gradient_norms
from hf_warmup.schedules import linear_warmup

from .testing_utils import TINY, arguments, column, examples, run, tiny_bert, train


RECIPES = [
    {"optim": "radam", "lr_scheduler_type": "noam", "warmup_steps": 3},
    {"optim": "adam_warmup", "lr_scheduler_type": "cosine", "warmup_steps": 0.5, "weight_decay": 0.1},
    {"optim": "gi_adam", "lr_scheduler_type": "linear", "warmup_type": "constant", "warmup_steps": 2},
    {"optim": "adamw", "lr_scheduler_type": "sine", "warmup_type": "untuned_exponential", "adam_beta2": 0.9},
    {"optim": "nag", "lr_scheduler_type": "power", "warmup_epochs": 0.5, "max_steps": -1, "num_train_epochs": 1},
    {"optim": "rmsprop", "optim_args": "alpha=0.9", "lr_scheduler_type": "inverse_sqrt", "warmup_steps": 3},
]


class Mixed(WarmupTrainerMixin, Trainer):
    pass


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe['optim']}-{recipe['lr_scheduler_type']}")
def test_three_doors_give_the_same_losses_bit_for_bit(tmp_path, recipe):
    def log(door):
        model, args = tiny_bert(), arguments(tmp_path / door, gradient_accumulation_steps=2, **recipe)
        data = {"train_dataset": examples(128), "args": args, "model": model}
        if door == "optimizers":
            trainer = Trainer(**data, optimizers=create_optimizer_and_scheduler(model, args, num_training_steps=8))
        else:
            trainer = {"trainer": WarmupTrainer, "mixin": Mixed}[door](**data)
        return train(trainer)

    logs = {door: log(door) for door in ("optimizers", "trainer", "mixin")}
    for key in ("loss", "learning_rate", "grad_norm"):
        assert len(set(map(tuple, (column(log, key) for log in logs.values())))) == 1
    assert len(set(column(logs["trainer"], "loss"))) > 4  # it did train


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe['optim']}-{recipe['lr_scheduler_type']}")
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, recipe):
    kwargs = {"save_strategy": "steps", "save_steps": 3, **recipe}
    whole = run(tmp_path / "whole", **kwargs)
    recorded = read_gradient_norms(tmp_path / "whole")

    folder = tmp_path / "whole"  # goes on from the middle, in a new process's objects
    trainer = WarmupTrainer(model=tiny_bert(seed=9), args=arguments(folder, **kwargs), train_dataset=examples())
    resumed = train(trainer, resume_from_checkpoint=str(folder / "checkpoint-3"))

    for key in ("loss", "learning_rate", "grad_norm"):
        assert column(resumed, key) == column(whole, key)
    assert read_gradient_norms(folder) == recorded
    assert [record["step"] for record in recorded] == list(range(1, 9))


@pytest.mark.parametrize("own", [False, True], ids=["stock", "pre_ln"])
def test_accumulation_changes_neither_loss_nor_norm(tmp_path, own):
    def log(steps):
        torch.manual_seed(0)
        model = BertPreLNForSequenceClassification(BertPreLNConfig(**TINY)) if own else tiny_bert()
        folder = tmp_path / str(steps)
        kwargs = {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 16 // steps}
        losses = column(run(folder, model, optim="radam", max_steps=4, max_grad_norm=0.0, **kwargs), "loss")
        return torch.tensor(losses), torch.tensor([list(record.values()) for record in read_gradient_norms(folder)])

    losses, norms = log(1)
    assert losses[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=0.05)  # two classes, not a multiple of it
    for steps in (2, 4):
        again, norms_again = log(steps)
        # fp32: the sums are taken in another order
        torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norms_again, norms, rtol=1e-4, atol=1e-6)


def test_recorded_norms_are_those_before_clipping(tmp_path):
    log = run(tmp_path, gradient_accumulation_steps=4, per_device_train_batch_size=2, max_grad_norm=0.01)
    records = read_gradient_norms(tmp_path)
    for entry, record in zip(log, records, strict=True):
        groups = {key: value for key, value in record.items() if key.startswith("grad_norm/")}
        layers = ("embeddings", "encoder.layer.0", "encoder.layer.1", "pooler", "classifier")
        assert list(groups) == [f"grad_norm/{layer}" for layer in layers]
        total = sum(value**2 for value in groups.values()) ** 0.5
        assert total > 0.02  # clipping was active
        assert total == pytest.approx(entry["grad_norm"], rel=1e-5)
        assert record["grad_norm"] == pytest.approx(entry["grad_norm"], rel=1e-5)
        assert {key: entry[key] for key in groups} == groups


def test_every_nth_update_is_recorded_or_none(tmp_path):
    run(tmp_path / "a", grad_norm_steps=3, grad_norm_group_by="module")
    records = read_gradient_norms(tmp_path / "a")
    assert [record["step"] for record in records] == [1, 4, 7]
    assert "grad_norm/bert.encoder.layer.0.output.dense" in records[0]
    log = run(tmp_path / "b", grad_norm_steps=0)
    assert not (tmp_path / "b" / GRADIENT_NORMS_FILE).exists()
    assert not any(key.startswith("grad_norm/") for key in log[0])


def test_norms_are_divided_by_the_loss_scale(tmp_path):
    def norms(folder, scale):
        trainer = WarmupTrainer(model=tiny_bert(), args=arguments(folder, max_grad_norm=0.0), train_dataset=examples())
        if scale:  # fp16 is silently off on a CPU; the scaler alone is what matters here
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        train(trainer)
        return torch.tensor([record["grad_norm"] for record in read_gradient_norms(folder)])

    torch.testing.assert_close(norms(tmp_path / "b", 1024.0)[0], norms(tmp_path / "a", None)[0])


def test_a_gradient_that_is_not_finite_is_counted_and_named(tmp_path):
    model = tiny_bert()
    trainer = WarmupTrainer(model=model, args=arguments(tmp_path, max_grad_norm=0.0), train_dataset=examples())

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            factor = float("inf") if state.global_step == 7 else 1.0
            self.handle = model.bert.pooler.dense.bias.register_hook(lambda gradient: gradient * factor)

        def on_step_end(self, args, state, control, **kwargs):
            self.handle.remove()

    trainer.add_callback(Spoil())
    log = train(trainer)
    last = read_gradient_norms(tmp_path)[-1]
    assert last["nonfinite"] == ["pooler"]
    assert last["grad_norm/pooler"] is None
    assert last["grad_norm"] is None
    assert log[-1]["grad_norm_nonfinite_updates"] == 1
    assert "grad_norm_nonfinite_updates" not in log[-2]
    json.loads((tmp_path / GRADIENT_NORMS_FILE).read_text().splitlines()[-1], parse_constant=pytest.fail)  # strict JSON


def test_adam_warmup_warms_up_once(tmp_path):
    by_schedule = run(tmp_path / "a", optim="adamw", lr_scheduler_type="linear", warmup_type="linear", warmup_steps=0.5)
    by_itself = run(tmp_path / "b", optim="adam_warmup", lr_scheduler_type="linear", warmup_steps=0.5)
    assert column(by_itself, "loss") == pytest.approx(column(by_schedule, "loss"), rel=1e-6)
    assert column(by_itself, "scheduled_lr") == pytest.approx(column(by_schedule, "learning_rate"), rel=1e-12)
    expected = [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]  # 4 updates up, then transformers' linear decay
    assert column(by_schedule, "learning_rate") == pytest.approx([1e-2 * factor for factor in expected])


@pytest.mark.parametrize(
    "recipe",
    [
        {"optim": "adamw_torch", "lr_scheduler_type": "linear", "warmup_steps": 3},
        {"optim": "sgd", "lr_scheduler_type": "cosine"},
        {"optim": "adafactor", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
        {},
    ],
)
def test_names_of_transformers_behave_as_without_us(tmp_path, recipe):
    theirs = arguments(tmp_path / "a", TrainingArguments, **recipe)
    log = train(Trainer(model=tiny_bert(), args=theirs, train_dataset=examples()))
    ours = run(tmp_path / "b", **recipe)
    for key in ("loss", "learning_rate", "grad_norm"):
        assert column(ours, key) == column(log, key)


def test_an_option_that_older_hosts_drop_is_used(tmp_path):
    by_option = run(tmp_path / "a", optim="sgd", optim_args="momentum=0.9")
    assert column(by_option, "loss") == column(run(tmp_path / "b", optim="sgdm"), "loss")
    assert column(by_option, "loss") != column(run(tmp_path / "c", optim="sgd"), "loss")


def test_plateau_behind_a_warmup(tmp_path):
    args = arguments(
        tmp_path,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "threshold": 10.0},  # nothing is ever good enough
        warmup_type="linear",
        warmup_steps=4,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8))
    rates = column(train(trainer), "learning_rate")
    # No loss is below -9 times the best one: every evaluation halves, and they follow updates 2, 4 and 6.
    factors = [0.25, 0.5, 0.75 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8]
    assert rates == pytest.approx([1e-2 * factor for factor in factors])


def test_keywords_reach_the_warmup_and_the_plateau(tmp_path):
    kwargs = {"patience": 0, "factor": 0.5, "threshold": 10.0, "warmup_factor": 0.2}
    args = arguments(
        tmp_path, lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs=kwargs, warmup_type="constant",
        warmup_steps=3, eval_strategy="steps", eval_steps=5,
    )  # fmt: skip
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8))
    rates = column(train(trainer), "learning_rate")
    assert rates == pytest.approx([2e-3, 2e-3, 2e-3, 1e-2, 1e-2, 5e-3, 5e-3, 5e-3])


def test_an_untuned_warmup_of_an_optimizer_without_beta2(tmp_path):
    recipe = {"optim": "sgd", "lr_scheduler_type": "noam", "warmup_type": "untuned_linear"}
    with pytest.raises(ValueError, match=r"follows from beta2, which .* does not have"):
        run(tmp_path / "a", **recipe)
    log = run(tmp_path / "b", lr_scheduler_kwargs={"beta2": 0.5}, warmup_steps=8, **recipe)
    assert column(log, "learning_rate")[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])  # 2 / (1 - 0.5)


def test_names_set_after_construction_are_names(tmp_path):
    args = arguments(tmp_path)
    args.optim, args.lr_scheduler_type = "radam", "cosine"
    log = train(WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples()))
    assert "scheduled_lr" in log[0]
    with pytest.raises(ValueError, match="optim='radamm' is unknown"):
        args.optim = "radamm"


def test_the_warmup_goes_where_the_optimizer_is(tmp_path):
    def log(optimizer, **kwargs):
        model = tiny_bert()
        args = arguments(tmp_path, warmup_steps=4, lr_scheduler_type="constant_with_warmup", **kwargs)
        pair = (optimizer(model.parameters(), lr=1e-2), None)
        return train(WarmupTrainer(model=model, args=args, train_dataset=examples(), optimizers=pair))

    # An AdamW in spite of the name: the schedule warms up. An AdamWarmup in spite of the name: it does, once.
    by_schedule = column(log(torch.optim.AdamW, optim="adam_warmup"), "learning_rate")
    assert by_schedule == pytest.approx([0.0, 2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2, 1e-2])
    by_itself = column(log(AdamWarmup), "scheduled_lr")
    assert by_itself == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2])
    with pytest.raises(
        ValueError, match=r"num_warmup_steps=4 with an optimizer that has warmup_steps=6 \(AdamWarmup\)"
    ):
        log(partial(AdamWarmup, warmup_steps=6))


def test_a_checkpoint_of_adamw_goes_on_with_a_warmup(tmp_path):
    def rates(optim, resume=None):
        args = arguments(tmp_path, optim=optim, lr_scheduler_type="constant", save_strategy="steps", save_steps=3)
        args.warmup_steps = 6 if optim == "adam_warmup" else 0
        trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples())
        return train(trainer, resume_from_checkpoint=resume)

    rates("adamw")
    resumed = rates("adam_warmup", str(tmp_path / "checkpoint-3"))
    assert column(resumed[3:], "scheduled_lr") == pytest.approx([1e-2 * 4 / 6, 1e-2 * 5 / 6, 1e-2, 1e-2, 1e-2])


def test_the_recording_follows_parameters_that_freeze_thaw_and_join(tmp_path):
    class Change(TrainerCallback):
        def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
            embeddings = model.bert.embeddings.word_embeddings.weight
            if state.global_step in (2, 4):
                embeddings.requires_grad_(state.global_step == 4)
            if state.global_step == 6:  # another head, trained from here on
                model.classifier = torch.nn.Linear(TINY["hidden_size"], 2)
                optimizer.param_groups[0]["params"].extend(model.classifier.parameters())

    trainer = WarmupTrainer(
        model=tiny_bert(),
        args=arguments(tmp_path, optim="radam", grad_norm_group_by="parameter"),
        train_dataset=examples(),
        callbacks=[Change()],
    )
    log = train(trainer)
    records = read_gradient_norms(tmp_path)
    # The Trainer's own norm is of all parameters that have a gradient, as they are in this update.
    assert column(records, "grad_norm") == pytest.approx(column(log, "grad_norm"), rel=1e-5)
    embeddings = "grad_norm/bert.embeddings.word_embeddings.weight"
    assert [embeddings in record for record in records] == [True, True, False, False, True, True, True, True]


def test_a_crash_keeps_the_recording(tmp_path):
    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise RuntimeError("out of luck")

    args = arguments(tmp_path, logging_steps=500)
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples(), callbacks=[Crash()])
    with pytest.raises(RuntimeError, match="out of luck"):
        train(trainer)
    assert [record["step"] for record in read_gradient_norms(tmp_path)] == [1, 2, 3, 4, 5]


def test_scheduled_lr_is_of_a_group_with_parameters(tmp_path):
    model = tiny_bert()
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))  # the Trainer's first group, with decay, is empty
    assert column(run(tmp_path, model, optim="gi_adam", lr_scheduler_type="constant"), "scheduled_lr") == [1e-2] * 8


def test_an_optimizer_that_builds_its_own_groups_is_refused_at_the_first_door(tmp_path, monkeypatch):
    args = arguments(tmp_path, optim="adamw_torch")
    own = staticmethod(lambda args, model=None: (torch.optim.AdamW, {"params": []}))
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", own)
    with pytest.raises(ValueError, match=r"optim='adamw_torch' builds its own parameter groups\. Use `WarmupTrainer`"):
        create_optimizer_and_scheduler(tiny_bert(), args, num_training_steps=8)


def test_a_second_train_starts_a_new_schedule(tmp_path):
    trainer = WarmupTrainer(model=tiny_bert(), args=arguments(tmp_path, warmup_steps=3), train_dataset=examples())
    first = column(train(trainer), "learning_rate")
    trainer.state.log_history.clear()
    assert column(train(trainer), "learning_rate") == first


def test_model_init_and_model_card(tmp_path):
    args = arguments(tmp_path, optim="radam", lr_scheduler_type="noam", warmup_steps=3)
    trainer = WarmupTrainer(model_init=lambda: tiny_bert(), args=args, train_dataset=examples())
    same = run(tmp_path / "b", optim="radam", lr_scheduler_type="noam", warmup_steps=3)
    assert column(train(trainer), "loss") == column(same, "loss")
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "radam" in card
    assert "lr_scheduler_type: noam" in card


def test_wrong_arguments_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="`args` is a TrainingArguments, which has none of hf_warmup's arguments"):
        WarmupTrainer(model=tiny_bert(), args=TrainingArguments(str(tmp_path)), train_dataset=examples())
    too_long = arguments(tmp_path, max_steps=-1, num_train_epochs=1, warmup_steps=9)
    with pytest.raises(ValueError, match="warmup_steps=9: expected at most the 8 updates"):
        WarmupTrainer(model=tiny_bert(), args=too_long, train_dataset=examples()).train()


def test_a_noam_peak_that_cannot_be_meant_warns_with_both_numbers(tmp_path):
    args = arguments(
        tmp_path, lr_scheduler_type="noam", learning_rate=5e-5, warmup_steps=4000, max_steps=10_000,
        lr_scheduler_kwargs={"d_model": 768},
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"learning_rate=5e-05 gives Noam a peak of 2.85e-08"):  # (768 * 4000)^-0.5
        create_optimizer_and_scheduler(tiny_bert(), args, num_training_steps=10_000)


def test_fp16_that_a_cpu_would_silently_leave_out_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fp16=True has no effect on the CPU"):
        WarmupTrainer(tiny_bert(), arguments(tmp_path, fp16=True))


def test_a_run_of_another_length_or_without_examples_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^num_training_steps=12: expected max_steps=8 of args\.$"):
        create_optimizer_and_scheduler(tiny_bert(), arguments(tmp_path), num_training_steps=12)
    with pytest.raises(ValueError, match=r"^`train_dataset` has no examples\."):
        WarmupTrainer(model=tiny_bert(), args=arguments(tmp_path), train_dataset=[]).train()


def test_a_warmup_that_optimizers_leave_out_is_said(tmp_path, caplog):
    recipe = {"warmup_type": "cosine", "warmup_steps": 0.5}

    def make(build, **kwargs):
        model, args = tiny_bert(), arguments(tmp_path, **kwargs)
        WarmupTrainer(model=model, args=args, train_dataset=examples(), optimizers=build(model, args))
        said, _ = caplog.text, caplog.clear()
        return said

    def step_lr(model, args):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3)

    def behind_a_warmup(model, args):
        optimizer, scheduler = step_lr(model, args)
        return optimizer, with_warmup(scheduler, partial(linear_warmup, num_warmup_steps=4))

    def ours(model, args):
        return create_optimizer_and_scheduler(model, args, 8)

    sentence = "warmup_type='cosine', warmup_steps=0.5 is ignored because a StepLR was passed via `optimizers=`."
    assert sentence in make(step_lr, **recipe)
    assert make(step_lr) == make(behind_a_warmup, **recipe) == make(ours, **recipe) == ""
    assert make(ours, optim="adam_warmup", warmup_steps=4) == ""
