"""`WarmupTrainer`: equal to the plain Trainer where it should be, resumed to the same bits, and what it writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from transformers import (
    EarlyStoppingCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from hf_warmup import (
    AdamWarmup,
    WarmupArgumentsMixin,
    WarmupSeq2SeqTrainer,
    WarmupSeq2SeqTrainingArguments,
    WarmupTrainer,
    WarmupTrainerMixin,
    WarmupTrainingArguments,
    create_optimizer_and_scheduler,
    with_warmup,
)
from hf_warmup.norms import GRADIENT_NORMS_FILE, read_gradient_norms
from hf_warmup.report import find, read_run
from hf_warmup.report.figures import panels_of
from hf_warmup.report.run import read_run_settings
from hf_warmup.report.schedule import describe_schedule
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


def make(folder, model=None, *, callbacks=None, eval_count=0, **kwargs):
    """Return a `WarmupTrainer` of the tiny task with the training arguments `kwargs`."""
    return WarmupTrainer(
        model=model or tiny_bert(),
        args=arguments(folder, **kwargs),
        train_dataset=examples(),
        eval_dataset=examples(eval_count) if eval_count else None,
        callbacks=callbacks,
    )


class Call(TrainerCallback):
    """Call a function at the end of one update."""

    def __init__(self, update, function):
        self.update, self.function = update, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.update:
            self.function()


def fail_with(error):
    def function():
        raise error

    return function


# Equal to the plain Trainer, and to itself resumed


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe['optim']}-{recipe['lr_scheduler_type']}")
def test_warmup_trainer_equals_optimizers_argument_and_resumed_run(tmp_path, recipe):
    kwargs = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2, **recipe}
    kwargs["per_device_train_batch_size"] = 4
    log = train(make(tmp_path, **kwargs))
    recorded = read_gradient_norms(tmp_path)
    assert len(set(column(log, "loss"))) > 4  # it did train
    assert [record["step"] for record in recorded] == list(range(1, 9))

    model, args = tiny_bert(), arguments(tmp_path / "plain", **kwargs)
    pair = create_optimizer_and_scheduler(model, args, num_training_steps=8)
    plain = train(Trainer(model=model, args=args, train_dataset=examples(), optimizers=pair))
    resumed_trainer = make(tmp_path, tiny_bert(seed=9), **kwargs)
    resumed = train(resumed_trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for key in ("loss", "learning_rate", "grad_norm"):
        assert column(plain, key) == column(log, key)
        assert column(resumed, key) == column(log, key)
    assert read_gradient_norms(tmp_path) == recorded


@pytest.mark.parametrize(
    "recipe",
    [
        {"optim": "adamw_torch", "lr_scheduler_type": "linear", "warmup_steps": 3},
        {"optim": "adafactor", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
        {},
    ],
    ids=["adamw_torch", "adafactor", "defaults"],
)
def test_warmup_trainer_names_of_transformers_equal_trainer(tmp_path, recipe):
    args = arguments(tmp_path / "plain", TrainingArguments, **recipe)
    plain = train(Trainer(model=tiny_bert(), args=args, train_dataset=examples()))
    log = run(tmp_path / "own", **recipe)
    for key in ("loss", "learning_rate", "grad_norm"):
        assert column(log, key) == column(plain, key)


def test_warmup_trainer_second_train_starts_a_new_schedule_and_moves_the_former_run_aside(tmp_path, caplog):
    trainer = make(tmp_path, warmup_steps=3)
    first, first_id = column(train(trainer), "learning_rate"), read_run_settings(tmp_path)["run_id"]
    assert column(train(trainer), "learning_rate") == first
    assert "The files of the former run in" in caplog.text
    assert read_run_settings(tmp_path / "former_run-1")["run_id"] == first_id != read_run_settings(tmp_path)["run_id"]
    assert len(read_gradient_norms(tmp_path)) == len(read_gradient_norms(tmp_path / "former_run-1")) == 8


def test_warmup_trainer_resumed_from_a_former_run_moves_the_recording_of_the_latest_aside(tmp_path):
    kwargs = {"optim": "radam", "save_strategy": "steps", "save_steps": 4}
    log = train(make(tmp_path, **kwargs))
    train(make(tmp_path, learning_rate=1e-3, **kwargs | {"save_strategy": "no"}))  # another run in the same folder
    latest_id = read_run_settings(tmp_path)["run_id"]
    resumed = make(tmp_path, **kwargs)
    assert column(train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-4")), "loss") == column(log, "loss")
    assert read_run_settings(tmp_path)["run_id"] == read_run_settings(tmp_path / "former_run-1")["run_id"]
    assert read_run_settings(tmp_path / "former_run-2")["run_id"] == latest_id
    assert len(read_gradient_norms(tmp_path)) == len(read_gradient_norms(tmp_path / "former_run-2")) == 8


def test_warmup_trainer_checkpoint_of_adamw_continues_with_adam_warmup(tmp_path):
    kwargs = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 3}
    train(make(tmp_path, optim="adamw", **kwargs))
    resumed = make(tmp_path, optim="adam_warmup", warmup_steps=6, **kwargs)
    log = train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    rates = column(log[3:], "effective_learning_rate")
    assert rates == pytest.approx([1e-2 * 4 / 6, 1e-2 * 5 / 6, 1e-2, 1e-2, 1e-2])


# Learning rates


def test_adam_warmup_equals_adamw_with_linear_warmup(tmp_path):
    by_schedule = run(tmp_path / "a", optim="adamw", lr_scheduler_type="linear", warmup_type="linear", warmup_steps=0.5)
    by_itself = run(tmp_path / "b", optim="adam_warmup", lr_scheduler_type="linear", warmup_steps=0.5)
    assert column(by_itself, "loss") == pytest.approx(column(by_schedule, "loss"), rel=1e-6)
    rates = column(by_schedule, "learning_rate")
    assert column(by_itself, "effective_learning_rate") == pytest.approx(rates, rel=1e-12)
    assert column(by_itself, "scheduled_lr") == column(by_itself, "effective_learning_rate")
    expected = [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]  # 4 updates up, then transformers' linear decay
    assert rates == pytest.approx([1e-2 * factor for factor in expected])


def test_warmup_trainer_optimizer_passed_in_decides_who_warms_up(tmp_path):
    def log(optimizer, **kwargs):
        model = tiny_bert()
        args = arguments(tmp_path, warmup_steps=4, lr_scheduler_type="constant_with_warmup", **kwargs)
        pair = (optimizer(model.parameters(), lr=1e-2), None)
        return train(WarmupTrainer(model=model, args=args, train_dataset=examples(), optimizers=pair))

    # An AdamW in spite of the name: the schedule warms up, from 0 as in transformers.
    by_schedule = column(log(torch.optim.AdamW, optim="adam_warmup"), "learning_rate")
    assert by_schedule == pytest.approx([0.0, 2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2, 1e-2])
    # An AdamWarmup in spite of the name: the optimizer warms up, and the schedule does not.
    by_itself = column(log(AdamWarmup), "effective_learning_rate")
    assert by_itself == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2])
    with pytest.raises(ValueError, match=r"num_warmup_steps=4 with an optimizer that has warmup_steps=6"):
        log(partial(AdamWarmup, warmup_steps=6))


def test_warmup_trainer_plateau_after_warmup_follows_the_evaluations(tmp_path):
    trainer = make(
        tmp_path, eval_count=8, lr_scheduler_type="reduce_lr_on_plateau", warmup_type="constant", warmup_steps=3,
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "threshold": 10.0, "warmup_factor": 0.2},
        eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    rates = column(train(trainer), "learning_rate")
    # No loss is below -9 times the best one: every evaluation halves the rate, after updates 2, 4 and 6.
    assert rates == pytest.approx([2e-3, 2e-3, 1e-3, 5e-3, 2.5e-3, 2.5e-3, 1.25e-3, 1.25e-3])


def test_warmup_trainer_effective_learning_rate_is_of_a_group_with_parameters(tmp_path):
    model = tiny_bert()
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))  # the Trainer's first group, with decay, is empty
    log = run(tmp_path, model, optim="gi_adam", lr_scheduler_type="constant")
    assert column(log, "effective_learning_rate") == [1e-2] * 8


@pytest.mark.parametrize("wrapped", [False, True])
def test_warmup_trainer_warmup_without_effect_warns(tmp_path, caplog, wrapped):
    model = tiny_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    if wrapped:
        scheduler = with_warmup(scheduler, partial(linear_warmup, num_warmup_steps=4))
    args = arguments(tmp_path, warmup_type="cosine", warmup_steps=0.5)
    WarmupTrainer(model=model, args=args, train_dataset=examples(), optimizers=(optimizer, scheduler))
    sentence = "warmup_type='cosine', warmup_steps=0.5 is ignored because a StepLR was passed via `optimizers=`."
    assert (sentence in caplog.text) is not wrapped


# The recording


def test_warmup_trainer_accumulation_changes_neither_losses_nor_recorded_norms(tmp_path):
    def log(steps):
        kwargs = {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 16 // steps, "max_steps": 4}
        losses = column(run(tmp_path, optim="radam", max_grad_norm=0.0, **kwargs), "loss")
        return torch.tensor(losses), torch.tensor(
            [list(record.values())[:6] for record in read_gradient_norms(tmp_path)]
        )

    losses, norms = log(1)
    assert losses[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=0.05)  # two classes, not a multiple of it
    # fp32: the sums are taken in another order
    torch.testing.assert_close(log(4), (losses, norms), rtol=1e-4, atol=1e-6)


def test_warmup_trainer_records_norms_before_clipping(tmp_path):
    log = run(tmp_path, gradient_accumulation_steps=4, per_device_train_batch_size=2, max_grad_norm=0.01)
    for entry, record in zip(log, read_gradient_norms(tmp_path), strict=True):
        groups = {key: value for key, value in record.items() if key.startswith("grad_norm/")}
        layers = ("embeddings", "encoder.layer.0", "encoder.layer.1", "pooler", "classifier")
        assert list(groups) == [f"grad_norm/{layer}" for layer in layers]
        total = sum(value**2 for value in groups.values()) ** 0.5
        assert total > 0.02  # clipping was active
        assert total == pytest.approx(entry["grad_norm"], rel=1e-5)
        assert record["grad_norm"] == pytest.approx(entry["grad_norm"], rel=1e-5)
        assert {key: entry[key] for key in groups} == groups


def test_warmup_trainer_grad_norm_steps_records_every_third_update_or_none(tmp_path):
    run(tmp_path / "a", grad_norm_steps=3, grad_norm_group_by="module")
    records = read_gradient_norms(tmp_path / "a")
    assert [record["step"] for record in records] == [1, 4, 7]
    assert "grad_norm/bert.encoder.layer.0.output.dense" in records[0]
    log = run(tmp_path / "b", grad_norm_steps=0)
    assert not (tmp_path / "b" / GRADIENT_NORMS_FILE).exists()
    assert not any(key.startswith("grad_norm/") for key in log[0])


def test_warmup_trainer_recorded_norms_are_divided_by_the_loss_scale(tmp_path):
    def first_norm(folder, scale):
        trainer = make(folder, max_grad_norm=0.0, max_steps=1)
        if scale:  # fp16 has no effect on a CPU; only the scaler matters here
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        train(trainer)
        return read_gradient_norms(folder)[0]["grad_norm"]

    assert first_norm(tmp_path / "b", 1024.0) == pytest.approx(first_norm(tmp_path / "a", None), rel=1e-5)


def test_warmup_trainer_gradient_that_is_not_finite_is_counted_and_named(tmp_path):
    model = tiny_bert()

    def spoil():
        model.bert.pooler.dense.bias.register_hook(lambda gradient: gradient * float("inf"))

    log = train(make(tmp_path, model, max_grad_norm=0.0, guard="off", callbacks=[Call(7, spoil)]))
    last = read_gradient_norms(tmp_path)[-1]
    assert last["nonfinite"] == ["pooler"]
    assert last["grad_norm/pooler"] is None
    assert last["grad_norm"] is None
    assert log[-1]["grad_norm_nonfinite_updates"] == 1
    assert "grad_norm_nonfinite_updates" not in log[-2]
    json.loads((tmp_path / GRADIENT_NORMS_FILE).read_text().splitlines()[-1], parse_constant=pytest.fail)  # strict JSON


def test_warmup_trainer_recording_follows_parameters_that_freeze_thaw_and_join(tmp_path):
    class Change(TrainerCallback):
        def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
            embeddings = model.bert.embeddings.word_embeddings.weight
            if state.global_step in (2, 4):
                embeddings.requires_grad_(state.global_step == 4)
            if state.global_step == 6:  # another head, trained from here on
                model.classifier = torch.nn.Linear(TINY["hidden_size"], 2)
                optimizer.param_groups[0]["params"].extend(model.classifier.parameters())

    log = train(make(tmp_path, optim="radam", grad_norm_group_by="parameter", callbacks=[Change()]))
    records = read_gradient_norms(tmp_path)
    # The Trainer's own norm is of all parameters that have a gradient, as they are in this update.
    assert column(records, "grad_norm") == pytest.approx(column(log, "grad_norm"), rel=1e-5)
    embeddings = "grad_norm/bert.embeddings.word_embeddings.weight"
    assert [embeddings in record for record in records] == [True, True, False, False, True, True, True, True]


def test_warmup_trainer_layer_unfrozen_later_warns_unless_the_optimizer_holds_it(tmp_path, caplog):
    class Freeze(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **kwargs):
            model.bert.requires_grad_(False)

        def on_step_begin(self, args, state, control, model, **kwargs):
            model.bert.requires_grad_(state.global_step > 0)

    for frozen_before in (True, False):
        caplog.clear()
        model = tiny_bert()
        before = model.bert.pooler.dense.weight.clone()
        model.bert.requires_grad_(not frozen_before)
        train(
            make(
                tmp_path, model, max_steps=2, optim="radam", optim_args="degenerated_to_sgd=true", callbacks=[Freeze()]
            )
        )
        assert ("such as bert.embeddings.word_embeddings.weight, were unfrozen" in caplog.text) == frozen_before
        assert torch.equal(model.bert.pooler.dense.weight, before) == frozen_before


def test_warmup_trainer_resumed_from_weights_alone_warns_that_the_schedule_starts_from_scratch(tmp_path, caplog):
    kwargs = {"max_steps": 4, "warmup_steps": 4, "warmup_type": "linear", "save_strategy": "steps", "save_steps": 2}
    train(make(tmp_path, save_only_model=True, **kwargs))
    log = train(make(tmp_path, **kwargs), resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert column(log, "learning_rate")[2] == 1e-2 / 4
    assert "checkpoint-2 was saved with save_only_model=True" in caplog.text


# The run folder


def test_warmup_trainer_crash_keeps_the_recording(tmp_path):
    trainer = make(tmp_path, logging_steps=500, callbacks=[Call(5, fail_with(RuntimeError("out of luck")))])
    with pytest.raises(RuntimeError, match="out of luck"):
        train(trainer)
    assert [record["step"] for record in read_gradient_norms(tmp_path)] == [1, 2, 3, 4, 5]
    assert read_run(tmp_path).end == "unfinished"


@pytest.mark.parametrize("save_steps", [2, 500])
def test_warmup_trainer_interrupt_writes_state_and_says_how_to_continue(tmp_path, save_steps):
    kwargs = {"save_strategy": "steps", "save_steps": save_steps}
    trainer = make(tmp_path, callbacks=[Call(5, fail_with(KeyboardInterrupt))], **kwargs)
    hint = {2: r"checkpoint-4 is complete: continue with `trainer\.train\('auto'\)`\.", 500: "There is no checkpoint"}
    with pytest.raises(KeyboardInterrupt, match=rf"interrupted at update 5 of 8\. {hint[save_steps]}"):
        train(trainer)
    interrupted = read_run(tmp_path)
    assert (interrupted.end, interrupted.updates, len(interrupted.log_history)) == ("interrupted", 5, 4)
    assert "interrupted at update 5 of 8" in repr(trainer.report())


def test_warmup_trainer_run_stopped_by_a_callback_is_reported_as_stopped_early(tmp_path):
    kwargs = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 0.0,
    }
    stopping = EarlyStoppingCallback(early_stopping_patience=1)
    train(make(tmp_path, eval_count=8, callbacks=[stopping], load_best_model_at_end=True, **kwargs))
    stopped = read_run(tmp_path)
    assert (stopped.end, stopped.updates) == ("stopped early", 2)
    assert len(stopped.log_history) == 5  # two losses, two evaluations, and the closing entry


def test_warmup_trainer_prints_no_layer_norms_and_logs_them(tmp_path, capsys):
    trainer = make(tmp_path, max_steps=1)
    trainer.add_callback(ProgressCallback)
    trainer.train()
    printed = capsys.readouterr().out
    assert "'loss'" in printed
    assert "grad_norm/" not in printed
    assert "grad_norm/pooler" in trainer.state.log_history[0]


def test_warmup_trainer_logs_norms_and_settings_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = {"optim": "radam", "warmup_type": "exponential", "warmup_steps": 0.3, "lr_scheduler_type": "cosine"}
    log = train(make(tmp_path, max_steps=8, report_to="tensorboard", **recipe))
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    for key in ("loss", "grad_norm", "grad_norm/encoder.layer.0", "learning_rate", "effective_learning_rate"):
        logged = [event.value for event in events.Scalars(f"train/{key}")]
        assert logged == pytest.approx(column(log, key)), key
    settings = json.loads(events.Tensors("args/text_summary")[0].tensor_proto.string_val[0])
    assert {key: settings[key] for key in recipe} == recipe
    assert settings["num_warmup_steps"] == 3  # 0.3 of 8 updates, rounded up


def test_warmup_trainer_create_model_card_describes_a_run_with_model_init(tmp_path):
    recipe = {"optim": "radam", "lr_scheduler_type": "noam", "warmup_steps": 3}
    args = arguments(tmp_path, **recipe)
    trainer = WarmupTrainer(model_init=lambda: tiny_bert(), args=args, train_dataset=examples())
    assert column(train(trainer), "loss") == column(run(tmp_path / "b", **recipe), "loss")
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "radam" in card
    assert "noam" in card


# What the constructor accepts


class Host(Trainer):
    """A Trainer whose second parameter is not `args`, and whose optimizer has parameter groups of its own."""

    def __init__(self, model, reward_funcs, args=None, train_dataset=None):
        self.reward_funcs = reward_funcs
        super().__init__(model, args, train_dataset=train_dataset)

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        cls, kwargs = super().get_optimizer_cls_and_kwargs(args, model)
        return cls, kwargs | {"optimizer_dict": [{"params": list(self.model.parameters()), "lr": 0.5}]}


class WarmupHost(WarmupTrainerMixin, Host):
    pass


@pytest.mark.parametrize("optim", ["adamw_torch", "radam"])
def test_warmup_trainer_mixin_keeps_parameters_and_groups_of_the_other_trainer(tmp_path, optim):
    args = arguments(tmp_path, optim=optim)
    by_name = WarmupHost(model=tiny_bert(), reward_funcs="r", args=args)
    by_position = WarmupHost(tiny_bert(), "r", args, examples())
    for trainer in (by_name, by_position):
        assert (trainer.reward_funcs, trainer.args) == ("r", args)
        (group,) = trainer.create_optimizer().param_groups
        assert (type(trainer.optimizer).__name__, group["lr"]) == (
            {"adamw_torch": "AdamW", "radam": "RAdam"}[optim],
            0.5,
        )


def test_warmup_trainer_mixin_without_args_raises_and_ready_classes_have_a_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"WarmupHost got no training arguments, .* Pass `args=`"):
        WarmupHost(tiny_bert(), "r")
    assert type(WarmupTrainer(tiny_bert()).args) is WarmupTrainingArguments
    seq2seq = WarmupSeq2SeqTrainer(tiny_bert())
    assert isinstance(seq2seq, Seq2SeqTrainer)
    assert type(seq2seq.args) is WarmupSeq2SeqTrainingArguments


def test_warmup_trainer_arguments_class_without_the_mixin_raises(tmp_path):
    with pytest.raises(ValueError, match="`args` is a TrainingArguments, which has none of hf_warmup's arguments"):
        WarmupTrainer(model=tiny_bert(), args=TrainingArguments(str(tmp_path)), train_dataset=examples())


def test_warmup_trainer_fp16_on_cpu_raises(tmp_path):
    with pytest.raises(ValueError, match="fp16=True has no effect on the CPU"):
        make(tmp_path, fp16=True)


def test_warmup_trainer_fewer_processes_than_launched_warns(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    make(tmp_path)
    assert "The launcher was asked for 4 processes, but this run sees 1." in caplog.text


def test_warmup_trainer_logs_before_training_and_accepts_a_dataset_of_unknown_length(tmp_path):
    class Unsized(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(examples())

        def __len__(self):
            raise TypeError("its length is not known")

    trainer = WarmupTrainer(model=tiny_bert(), args=arguments(tmp_path, max_steps=2), train_dataset=Unsized())
    trainer.log({"loss": 1.0})
    assert trainer.state.log_history[0]["loss"] == 1.0
    assert len(train(trainer)) == 2


def test_warmup_trainer_run_without_examples_or_shorter_than_its_warmup_raises(tmp_path):
    with pytest.raises(ValueError, match=r"^`train_dataset` has no examples\."):
        WarmupTrainer(model=tiny_bert(), args=arguments(tmp_path), train_dataset=[]).train()
    with pytest.raises(ValueError, match="warmup_steps=9: expected at most"):
        make(tmp_path, max_steps=-1, num_train_epochs=1, warmup_steps=9).train()


def test_create_optimizer_and_scheduler_what_it_cannot_do_raises(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^num_training_steps=12: expected max_steps=8 of args\.$"):
        create_optimizer_and_scheduler(tiny_bert(), arguments(tmp_path), num_training_steps=12)
    own = staticmethod(lambda args, model=None: (torch.optim.AdamW, {"params": []}))
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", own)
    with pytest.raises(ValueError, match=r"optim='adamw_torch' builds its own parameter groups\. Use `WarmupTrainer`"):
        create_optimizer_and_scheduler(tiny_bert(), arguments(tmp_path, optim="adamw_torch"), num_training_steps=8)


def test_warmup_trainer_mixin_arguments_of_another_class_train(tmp_path):
    @dataclass
    class Arguments(WarmupArgumentsMixin, TrainingArguments):
        pass

    class Ours(WarmupTrainerMixin, Trainer):
        pass

    args = arguments(tmp_path, Arguments, max_steps=2, optim="radam")
    assert len(train(Ours(model=tiny_bert(), args=args, train_dataset=examples()))) == 2


def test_record_updates_logs_the_norm_of_each_layers_update(tmp_path):
    log = run(tmp_path, max_steps=3, record=("gradients", "updates"), optim="radam", guard="off")
    keys = [key for key in log[-1] if key.startswith("update_norm/")]
    assert "update_norm/encoder.layer.0" in keys
    rows = read_gradient_norms(tmp_path)
    assert [row["update_norm/encoder.layer.0"] for row in rows] == [0.0] * 3  # RAdam makes no update before the sixth
    log = run(tmp_path / "b", max_steps=2, record="gradients,updates", optim="adamw_torch", guard="off")
    row = read_gradient_norms(tmp_path / "b")[1]
    assert 0 < row["update_norm/encoder.layer.0"] == log[1]["update_norm/encoder.layer.0"]
    assert 0 < row["update_ratio/encoder.layer.0"] < row["update_norm/encoder.layer.0"]
    assert "update_ratio" in [panel.key for panel in panels_of([read_run(tmp_path / "b")])]


def test_record_updates_raises_for_an_optimizer_whose_update_is_not_known(tmp_path):
    with pytest.raises(ValueError, match="not possible for Adagrad"):
        run(tmp_path, record=("gradients", "updates"), optim="adagrad", max_steps=1)


def test_report_of_an_own_optimizer_and_schedule_reads_what_was_used(tmp_path):
    """Not the arguments, which say AdamW at beta2 0.999 and a linear decay without a warmup."""
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, 10, 40)
    args = arguments(tmp_path, max_steps=40, learning_rate=1e-3)
    WarmupTrainer(model, args, train_dataset=examples(), optimizers=(optimizer, schedule)).train()
    used = read_run(tmp_path)
    assert describe_schedule(used).startswith("Warmup: about 10 of 40 updates (25 %), linear to 0.002, then cosine")
    assert not {"optim", "adam_beta2", "warmup_type", "learning_rate"} & set(used.settings)
    assert "short warmup" not in [finding.rule for finding in find(used)]
