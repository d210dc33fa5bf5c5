"""A small typed program of a user, which `mypy --strict` accepts: what `py.typed` promises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LRScheduler

import hf_warmup
from hf_warmup import AdamWarmup, GradientNormRecorder, RAdam, WarmupTrainer, WarmupTrainingArguments
from hf_warmup.schedules import linear_warmup


def build(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, LRScheduler]:
    optimizer = RAdam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    return optimizer, hf_warmup.get_scheduler("cosine", optimizer, 10, 100, warmup_type="exponential")


def multiplier(step: int) -> float:
    schedule: Callable[[int], float] = hf_warmup.get_schedule("noam", 10)
    return schedule(step) * linear_warmup(step, num_warmup_steps=10)


def norms(model: torch.nn.Module, path: str) -> int:
    recorder = GradientNormRecorder(path, group_by="layer", every=10)
    recorder.record(model.named_parameters(), step=1)
    return len(recorder.flush())


class Trainer(WarmupTrainer):
    def steps(self) -> int:
        args = WarmupTrainingArguments("runs/a", optim="radam", warmup_steps=0.1)
        return args.get_warmup_steps(100)


warmup: torch.optim.Optimizer = AdamWarmup([torch.zeros(1)], warmup_steps=10)
