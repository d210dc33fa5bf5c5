"""The run of every cell: RAdam, a linear warmup of 4 updates before a cosine, 6 updates of 16 examples each."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, SequentialSampler
from transformers import TrainerState, default_data_collator

from hf_warmup import GradientNormRecorder, WarmupTrainer
from hf_warmup.accelerate_utils import (
    create_optimizer,
    create_scheduler,
    load_checkpoint,
    record_gradient_norms,
    save_checkpoint,
)
from hf_warmup.norms import read_gradient_norms

from ..testing_utils import arguments, column, examples, tiny_bert, train


UPDATES, GLOBAL_BATCH, W = 6, 16, 4


def make_trainer(batch: int, accumulation: int, **more: Any) -> WarmupTrainer:
    """Return a Trainer that does not shuffle the examples."""
    args = arguments(
        mkdtemp(),
        optim="radam",
        optim_args="degenerated_to_sgd=true",
        lr_scheduler_type="cosine",
        warmup_type="linear",
        warmup_steps=W,
        max_steps=UPDATES,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.1,
        **more,
    )
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples())
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
    return trainer


def run_trainer(trainer: WarmupTrainer) -> dict[str, Any]:
    """Train and return what was logged and recorded at each update."""
    log = train(trainer)
    return {
        "lr": column(log, "learning_rate"),
        "loss": column(log, "loss"),
        "total": [entry.get("grad_norm") for entry in log],  # DeepSpeed has none at stage 0
        "norms": read_gradient_norms(trainer.args.output_dir) if trainer.is_world_process_zero() else [],
    }


def run_loop(accelerator: Accelerator, batch: int, folder: Path | None = None, resume: bool = False) -> dict[str, Any]:
    """Make the same run as a loop; with a folder only its first half, saved there, or its second, resumed."""
    model = tiny_bert()
    optimizer = create_optimizer(model, "radam", 1e-2, optim_args="degenerated_to_sgd=true")
    scheduler = create_scheduler(optimizer, "cosine", W, UPDATES, warmup_type="linear")
    loader = DataLoader(examples(), batch, collate_fn=default_data_collator)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    state = load_checkpoint(accelerator, True, folder, model) if resume else TrainerState()
    recorder = GradientNormRecorder(None)
    results: dict[str, Any] = {"lr": [], "loss": [], "total": [], "norms": []}
    losses = []
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(batches, state.global_step, None):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            losses.append(loss.detach())
            rate = scheduler.get_last_lr()[0]
            with record_gradient_norms(recorder, accelerator, model, len(results["lr"]) + 1):
                accelerator.backward(loss)
            if accelerator.sync_gradients:
                total = accelerator.clip_grad_norm_(model.parameters(), 0.1)
                results["total"].append(
                    total if total is None else float(getattr(total, "full_tensor", lambda t=total: t)())
                )
                results["lr"].append(rate)
                results["loss"].append(accelerator.reduce(torch.stack(losses).mean(), "mean").item())
                losses.clear()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if folder is not None and accelerator.sync_gradients:
            state.global_step += 1
            save_checkpoint(accelerator, folder, state, total_limit=1)
        if len(results["lr"]) == (UPDATES // 2 if folder is not None else UPDATES):
            break
    results["norms"] = recorder.flush()
    return results
