"""Resuming with another optimizer or schedule: those that share a state can, all others are refused before training."""

from __future__ import annotations

import re

import pytest
import torch

from hf_warmup import RAdam, WarmupTrainer, WarmupUntilCallback

from .testing_utils import arguments, examples, run, tiny_bert, train


def resumed(folder, checkpoint, **kwargs):
    trainer = WarmupTrainer(tiny_bert(), arguments(folder, **kwargs), train_dataset=examples())
    return train(trainer, resume_from_checkpoint=str(checkpoint))


@pytest.fixture(scope="module")
def of_each_kind(tmp_path_factory):
    """A checkpoint after 2 updates for each optimizer that keeps a state of its own."""
    folder = tmp_path_factory.mktemp("kinds")
    for optim in ("adamw", "radam", "sgdm", "adafactor", "nadam", "rmsprop", "adadelta", "adagrad"):
        run(folder / optim, optim=optim, learning_rate=1e-3, max_steps=2, save_strategy="steps", save_steps=2)
    return folder


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        ("radam", "sgdm", "holds exp_avg, exp_avg_sq, step, but SGD needs dampening, momentum"),
        ("sgdm", "radam", "holds momentum_buffer, but RAdam needs betas, eps, exp_avg, exp_avg_sq"),
        ("sgdm", "adamw_torch", "holds momentum_buffer, but AdamW needs betas, eps, exp_avg, exp_avg_sq"),
        ("radam", "adafactor", "Adafactor needs clip_threshold, decay_rate"),
        (
            "adafactor",
            "radam",
            "holds RMS, exp_avg_sq, exp_avg_sq_col, exp_avg_sq_row, ..., but RAdam needs betas, exp_avg, exp_avg_sq",
        ),
        ("adamw", "nadam", "holds exp_avg, exp_avg_sq, step, but NAdam needs momentum_decay"),
        ("adamw", "rmsprop", "RMSprop needs alpha"),
        ("rmsprop", "adadelta", "holds square_avg, step, but Adadelta needs rho"),
        ("adadelta", "adagrad", "Adagrad needs initial_accumulator_value, lr_decay"),
        ("adagrad", "gi_adam", "holds step, sum, but GIAdam needs betas, exp_avg, exp_avg_sq"),
    ],
)
def test_resuming_with_another_kind_of_optimizer_is_refused_before_training(
    of_each_kind, tmp_path, before, now, sentence
):
    checkpoint = of_each_kind / before / "checkpoint-2"
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        resumed(tmp_path, checkpoint, optim=now)
    assert str(caught.value).startswith(f"{checkpoint / 'optimizer.pt'} holds ")
    saved_with = f"the optimizer that the checkpoint was saved with (optim={before!r} in its run_settings.json)"
    assert str(caught.value).endswith(f"Resume with {saved_with}, or start from scratch.")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("adamw", "radam"),
        ("adamw", "adam_warmup"),
        ("adamw", "gi_adam"),
        ("radam", "adamw_torch"),
        ("radam", "adam"),
        ("nadam", "adamw"),
        ("sgdm", "nag"),
    ],
)
def test_resuming_with_an_optimizer_that_shares_the_state_works(of_each_kind, tmp_path, before, now):
    assert len(resumed(tmp_path, of_each_kind / before / "checkpoint-2", optim=now, max_steps=3)) == 3


def test_a_checkpoint_moves_to_and_from_torchs_radam(tmp_path):
    checkpoint = None
    for updates, cls in ((2, torch.optim.RAdam), (4, RAdam), (6, torch.optim.RAdam)):
        model, args = tiny_bert(), arguments(tmp_path, max_steps=updates, save_strategy="steps", save_steps=2)
        pair = (cls(model.parameters(), lr=1e-3), None)
        trainer = WarmupTrainer(model, args, train_dataset=examples(), optimizers=pair)
        assert len(train(trainer, resume_from_checkpoint=checkpoint)) == updates
        checkpoint = str(tmp_path / f"checkpoint-{updates}")


PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}


@pytest.mark.parametrize(
    ("before", "now", "needed"),
    [
        (PLATEAU, {"lr_scheduler_type": "linear"}, "base_lrs, lr_lambdas"),
        ({"lr_scheduler_type": "linear"}, PLATEAU, "best"),
        (PLATEAU, {**PLATEAU, "warmup_type": "linear", "warmup_steps": 4}, "inner_lrs"),
        ({**PLATEAU, "warmup_type": "linear", "warmup_steps": 4}, PLATEAU, "best"),
        ({}, {"callbacks": [WarmupUntilCallback("loss", 0.0, max_steps=4)]}, "inner_lrs"),
        ({"callbacks": [WarmupUntilCallback("loss", 0.0, max_steps=4)]}, {}, "base_lrs, lr_lambdas"),
    ],
)
def test_resuming_with_another_kind_of_schedule_is_refused_before_training(tmp_path, before, now, needed):
    def trainer(callbacks=(), **kwargs):
        args = arguments(tmp_path, **{"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **kwargs})
        data = {"train_dataset": examples(), "eval_dataset": examples(8)}
        return WarmupTrainer(tiny_bert(), args, callbacks=list(callbacks), **data)

    train(trainer(**before))
    again = trainer(**now)
    with pytest.raises(
        ValueError, match=rf"scheduler.pt holds .*, but .* needs .*{needed}.*Resume with the schedule \(and WarmupUntil"
    ):
        train(again, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step in (0, 2)  # before 5.0 the optimizer is made before the state is loaded
