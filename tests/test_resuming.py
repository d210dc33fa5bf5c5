"""Resuming with data drawn at random, and with another optimizer or schedule."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

from hf_warmup import RAdam, WarmupTrainer, WarmupUntilCallback

from .testing_utils import TINY, arguments, examples, run, tiny_bert, tiny_tokenizer, train


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


class Crops(torch.utils.data.Dataset):
    """Sequences cut at random by Python's and by NumPy's generator."""

    def __len__(self):
        return 36

    def __getitem__(self, index):
        start = index + random.randrange(8) + np.random.randint(8)
        return {"input_ids": [2 + (each % 5) for each in range(start, start + 8)]}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_run_draws_the_same_crops_masks_and_dropout(tmp_path, accumulation):
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = "</s>"

    def weights(folder, checkpoint=None):
        model = BertForMaskedLM(BertConfig(**TINY | {"hidden_dropout_prob": 0.1}))
        args = arguments(
            folder, max_steps=-1, num_train_epochs=2, per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation, save_strategy="no" if checkpoint else "steps", save_steps=1,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
        train(
            WarmupTrainer(model, args, train_dataset=Crops(), data_collator=collator), resume_from_checkpoint=checkpoint
        )
        return torch.nn.utils.parameters_to_vector(model.parameters())

    complete = weights(tmp_path)
    for update in (1, 5, 7):  # five updates an epoch
        resumed = weights(tmp_path / "resumed", str(tmp_path / f"checkpoint-{update}"))
        assert torch.equal(resumed, complete), update
        assert (tmp_path / f"checkpoint-{update}" / "batch_rng_state_0.pth").exists() == (update != 5)
