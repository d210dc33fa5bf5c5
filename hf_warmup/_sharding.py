"""Gradients spread over processes (FSDP2, tensor parallelism): this process's part, and whom to add it with."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


# The mesh and those of its dimensions over which a tensor is sharded; None where this process has it whole.
Sharding = tuple[Any, tuple[int, ...]] | None


def local_part(gradient: Tensor) -> tuple[Tensor, Sharding]:
    """What this process holds of `gradient`, and how the whole is sharded."""
    if type(gradient) is Tensor:
        return gradient, None
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(gradient, DTensor):
        return gradient, None
    if any(placement.is_partial() for placement in gradient.placements):
        whole = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
        gradient = gradient.redistribute(placements=whole)
    sharded = tuple(dim for dim, placement in enumerate(gradient.placements) if placement.is_shard())
    return gradient.to_local(), (gradient.device_mesh, sharded) if sharded else None


def add_shards(squares: Tensor, sharding: Sharding) -> Tensor:
    """Sums of squares over this process's parts, in place, to sums over the wholes: one reduction a mesh dimension."""
    if sharding is not None:
        mesh, dims = sharding
        for dim in dims:
            dist.all_reduce(squares, group=mesh.get_group(dim))
    return squares
