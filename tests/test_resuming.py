"""Going on from a checkpoint with another optimizer or schedule: what shares its state does, the others are refused."""

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
    """A checkpoint after 2 updates for each of transformers' and our optimizers that keep a state of their own."""
    folder = tmp_path_factory.mktemp("kinds")
    for optim in ("adamw", "radam", "sgdm", "adafactor", "nadam", "rmsprop", "adadelta", "adagrad"):
        run(folder / optim, optim=optim, learning_rate=1e-3, max_steps=2, save_strategy="steps", save_steps=2)
    return folder


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        ("radam", "sgdm", "holds exp_avg, exp_avg_sq, step; SGD needs dampening, momentum"),
        ("sgdm", "radam", "holds momentum_buffer; RAdam needs exp_avg, exp_avg_sq"),
        ("sgdm", "adamw_torch", "holds momentum_buffer; AdamW needs betas, eps, exp_avg, exp_avg_sq"),
        ("radam", "adafactor", "Adafactor needs beta1, clip_threshold, decay_rate"),
        (
            "adafactor",
            "radam",
            "holds RMS, exp_avg_sq, exp_avg_sq_col, exp_avg_sq_row, ...; RAdam needs exp_avg, exp_avg_sq",
        ),
        ("adamw", "nadam", "holds exp_avg, exp_avg_sq, step; NAdam needs momentum_decay"),
        ("adamw", "rmsprop", "RMSprop needs alpha"),
        ("rmsprop", "adadelta", "holds square_avg, step; Adadelta needs rho"),
        ("adadelta", "adagrad", "Adagrad needs initial_accumulator_value, lr_decay"),
        ("adagrad", "gi_adam", "holds step, sum; GIAdam needs exp_avg, exp_avg_sq"),
    ],
)
def test_the_state_of_another_kind_of_optimizer_is_refused_before_training(
    of_each_kind, tmp_path, before, now, sentence
):
    checkpoint = of_each_kind / before / "checkpoint-2"
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        resumed(tmp_path, checkpoint, optim=now)
    assert str(caught.value).startswith(f"{checkpoint / 'optimizer.pt'} holds ")
    made_with = f"with the optimizer it was made with (optim={before!r} in its run_settings.json), or start anew."
    assert str(caught.value).endswith(made_with)
    assert not (tmp_path / "gradient_norms.jsonl").exists()


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
def test_optimizers_that_share_a_state_take_each_others(of_each_kind, tmp_path, before, now):
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
def test_the_state_of_another_kind_of_schedule_is_refused_before_training(tmp_path, before, now, needed):
    def trainer(callbacks=(), **kwargs):
        args = arguments(tmp_path, **{"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **kwargs})
        data = {"train_dataset": examples(), "eval_dataset": examples(8)}
        return WarmupTrainer(tiny_bert(), args, callbacks=list(callbacks), **data)

    train(trainer(**before))
    again = trainer(**now)
    with pytest.raises(
        ValueError, match=rf"scheduler.pt holds .*; .* needs .*{needed}.*: resume with the schedule and, if any,"
    ):
        train(again, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 2  # that of the checkpoint
