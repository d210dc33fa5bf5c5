"""One process of a group: the tiny run as Trainer and as loop, for each precision, wrapping and accumulation.

    torchrun --nproc_per_node 2 tests/workers/matrix.py results.json

Every cell sees the same 16 examples in each update, so learning rates, losses and norms are those of one process.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration, FullyShardedDataParallelPlugin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from hf_warmup import get_scheduler
from hf_warmup.accelerate_utils import create_scheduler
from hf_warmup.norms import group_norms
from tests.workers.runs import GLOBAL_BATCH, UPDATES, make_trainer, run_loop, run_trainer


SHARDED = ["BertLayer"]  # Accelerate shards the embeddings by itself


def shard_on_cpu(state: AcceleratorState) -> None:
    """Make Accelerate shard on CPUs. It decides by its state only, and the code under test is the same."""
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=SHARDED,
        cpu_ram_efficient_loading=False,
        reshard_after_forward=True,
    )


def fresh_state() -> None:
    """Reset the state of Accelerate between two runs in one process, but keep the process group."""
    GradientState._reset_state()
    AcceleratorState._reset_state()
    state = PartialState(cpu=True)
    kind = DistributedType.MULTI_CPU if state.num_processes > 1 else DistributedType.NO
    PartialState._shared_state["distributed_type"] = kind


def as_trainer(precision: str, wrapping: str, accumulation: int, world: int) -> dict[str, Any]:
    trainer = make_trainer(GLOBAL_BATCH // accumulation // world, accumulation, bf16=precision == "bf16")
    if wrapping == "fsdp2":
        shard_on_cpu(trainer.accelerator.state)
        trainer.is_fsdp_enabled = True
    return run_trainer(trainer)


def as_loop(
    precision: str, wrapping: str, accumulation: int, world: int, folder: Path | None = None, resume: bool = False
) -> dict[str, Any]:
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulation)
    if wrapping == "fsdp2":
        shard_on_cpu(accelerator.state)
    return run_loop(accelerator, GLOBAL_BATCH // accumulation // world, folder, resume)


def clock(prepared: bool, split_batches: bool, ours: bool = True) -> list[float]:
    """Return the learning rates of 6 updates of a warmup of 8, with the scheduler prepared or not."""
    configuration = DataLoaderConfiguration(split_batches=split_batches)
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    if ours:
        scheduler = create_scheduler(optimizer, "constant", 8, 100, warmup_type="linear")
    else:
        scheduler = get_scheduler("constant", optimizer, 8, 100, warmup_type="linear")
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = accelerator.prepare(scheduler) if prepared else scheduler
    rates = []
    for _ in range(UPDATES):
        accelerator.backward(model(torch.ones(1, 1)).sum())
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return rates


def sharded_norms(world: int) -> dict[str, float]:
    """Return the norm of the gradient 1, 2, ..., 12, spread over the processes in different ways."""
    whole = torch.arange(1.0, 13.0).view(6, 2)
    line, square = init_device_mesh("cpu", (world,)), init_device_mesh("cpu", (world // 2, 2))
    spread = {
        "replicated": distribute_tensor(whole, line, [Replicate()]),
        "rows, unevenly": distribute_tensor(whole, line, [Shard(0)]),
        "columns, some empty": distribute_tensor(whole, line, [Shard(1)]),
        "copies of shards (HSDP)": distribute_tensor(whole, square, [Replicate(), Shard(0)]),
        "rows and columns": distribute_tensor(whole, square, [Shard(0), Shard(1)]),
        "parts of a sum": DTensor.from_local(whole / world, line, [Partial()]),
        "a plain tensor": whole,
    }
    norms = group_norms([*spread.values(), *spread.values()], [*range(len(spread))] * 2, len(spread))
    return dict(zip(spread, norms.tolist(), strict=True))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    clocks = {}
    for prepared, split_batches, own in itertools.product((True, False), repeat=3):
        fresh_state()
        clocks[f"{prepared}/{split_batches}/{own}"] = clock(prepared, split_batches, own)
    sharded = sharded_norms(world) if world > 1 else {}
    results: dict[str, Any] = {"sharded": sharded, "clocks": clocks, "cells": {}, "resumed": {}}
    for engine, precision, wrapping, accumulation in itertools.product(
        (as_trainer, as_loop), ("no", "bf16"), ("ddp", "fsdp2"), (1, 4)
    ):
        if wrapping == "fsdp2" and world == 1:
            continue  # a process group of one: torchrun starts it, but there is nothing to shard
        fresh_state()
        name = f"{engine.__name__}/{precision}/{wrapping}/{accumulation}"
        results["cells"][name] = engine(precision, wrapping, accumulation, world)
    for wrapping in ("ddp", "fsdp2") if world > 1 else ("ddp",):
        halves = []
        for resume in (False, True):
            fresh_state()
            folder = Path(sys.argv[1]).with_name(f"checkpoints-{wrapping}")
            halves.append(as_loop("no", wrapping, 1, world, folder, resume)["loss"])
        results["resumed"][wrapping] = halves
    if PartialState().is_main_process:
        Path(sys.argv[1]).write_text(json.dumps(results))
    PartialState().wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads abort now and then at the interpreter's end


if __name__ == "__main__":
    main()
