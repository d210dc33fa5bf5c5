"""Helpers that step schedulers with their optimizers, and save and load their states."""

from __future__ import annotations

import io

import torch


def adamw(*lrs, betas=(0.9, 0.999), cls=torch.optim.AdamW):
    """An optimizer with one parameter group per learning rate."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs]
    return cls(groups, lr=lrs[0], **({"betas": betas} if cls is torch.optim.AdamW else {}))


def lrs_of(scheduler, n):
    """The learning rates of all groups at each of `n` updates."""
    rows = []
    for _ in range(n):
        rows.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rows


def through_file(state):
    """Save and load a state as a checkpoint does, with `weights_only=True`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
