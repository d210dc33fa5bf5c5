"""Optimizers and schedulers stepped side by side, and their states through a file."""

from __future__ import annotations

import io

import torch


def adamw(*lrs, betas=(0.9, 0.999), cls=torch.optim.AdamW):
    """An optimizer with one group for each learning rate."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs]
    return cls(groups, lr=lrs[0], **({"betas": betas} if cls is torch.optim.AdamW else {}))


def lrs_of(scheduler, n):
    """The learning rates of each group in force at n updates, read where the optimizer reads them."""
    rows = []
    for _ in range(n):
        rows.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rows


def through_file(state):
    """Saved and loaded as a checkpoint is, by torch's safe load."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
