"""One process under DeepSpeed: the tiny run at a ZeRO stage, as Trainer and as Accelerate loop.

DS_ACCELERATOR=cpu torchrun --standalone --nproc_per_node 1 tests/workers/zero.py results.json
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import warnings
from pathlib import Path
from tempfile import mkdtemp
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_warmup import GradientNormRecorder, WarmupTrainer
from hf_warmup.accelerate_utils import create_optimizer, create_scheduler, record_gradient_norms
from hf_warmup.gradient_norms import read_gradient_norms
from tiny import arguments, column, examples, tiny_bert, train


UPDATES, GLOBAL_BATCH, W = 6, 16, 4


def configuration(stage: int, accumulation: int) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.1,
        "zero_allow_untested_optimizer": True,
    }


def as_trainer(stage: int, accumulation: int) -> dict[str, Any]:
    folder = Path(mkdtemp())
    args = arguments(
        folder,
        optim="radam",
        optim_args="degenerated_to_sgd=true",
        lr_scheduler_type="cosine",
        warmup_type="linear",
        warmup_steps=W,
        max_steps=UPDATES,
        per_device_train_batch_size=GLOBAL_BATCH // accumulation,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.1,
        use_cpu=False,
        deepspeed=configuration(stage, accumulation),
    )
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples())
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    log = train(trainer)
    return {
        "lr": column(log, "learning_rate"),
        "loss": column(log, "loss"),
        "total": [entry.get("grad_norm") for entry in log],  # none at stage 0
        "norms": read_gradient_norms(folder),
    }


def as_loop(stage: int, accumulation: int) -> dict[str, Any]:
    plugin = DeepSpeedPlugin(hf_ds_config=configuration(stage, accumulation))
    accelerator = Accelerator(deepspeed_plugin=plugin, gradient_accumulation_steps=accumulation)
    model = tiny_bert()
    optimizer = create_optimizer(model, "radam", 1e-2, optim_args="degenerated_to_sgd=true")
    scheduler = create_scheduler(optimizer, "cosine", W, UPDATES, warmup_type="linear")
    loader = DataLoader(examples(), GLOBAL_BATCH // accumulation, collate_fn=default_data_collator)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    recorder = GradientNormRecorder(None)
    results: dict[str, Any] = {"lr": [], "loss": [], "total": [], "norms": []}
    losses = []
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            losses.append(loss.detach())
            rate = scheduler.get_last_lr()[0]
            with record_gradient_norms(recorder, accelerator, model, len(results["lr"]) + 1):
                accelerator.backward(loss)
            if accelerator.sync_gradients:
                results["total"].append(accelerator.clip_grad_norm_(model.parameters(), 0.1))
                results["lr"].append(rate)
                results["loss"].append(torch.stack(losses).mean().item())
                losses.clear()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if len(results["lr"]) == UPDATES:
            break
    results["norms"] = recorder.flush()
    return results


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {}
    for engine, stage, accumulation in itertools.product((as_trainer, as_loop), (0, 1, 2, 3), (1, 4)):
        GradientState._reset_state()
        AcceleratorState._reset_state()
        results[f"{engine.__name__}/{stage}/{accumulation}"] = engine(stage, accumulation)
    Path(sys.argv[1]).write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
