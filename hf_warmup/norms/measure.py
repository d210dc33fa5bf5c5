"""Norms of groups of gradients as one tensor, sharded or not."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .grouping import GroupBy, group_names


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


def _tensor_norms(gradients: list[Tensor]) -> list[Tensor]:
    """L2 norm of each, in float32. `torch._foreach_norm` has no public name and saves a launch per parameter."""
    return list(torch._foreach_norm(gradients, 2.0, dtype=torch.float32))


@lru_cache(maxsize=16)
def _on_device(index: tuple[int, ...], device: torch.device) -> Tensor:
    """Sent once: a GPU has to finish its work before an ordinary copy to it returns."""
    return torch.tensor(index, device=device)


@torch.no_grad()
def group_norms(gradients: list[Tensor], index: list[int], num_groups: int) -> Tensor:
    """L2 norm of each group of `gradients`, on their device.

    Args:
        gradients (`list[Tensor]`): Of any shapes; shards of a `DTensor` are added up over its processes.
        index (`list[int]`): Group of each gradient, in `[0, num_groups)`.
        num_groups (`int`): Number of groups.

    Returns:
        `Tensor`: Shape `(num_groups,)`, float32; 0 for a group without a gradient.
    """
    if not gradients:
        return torch.zeros(num_groups)
    device = gradients[0].device
    parts, shardings = zip(*map(local_part, gradients), strict=True)
    norms = _tensor_norms(list(parts))
    if len({norm.device for norm in norms}) > 1:  # a model over several devices
        norms = [norm.to(device) for norm in norms]
    norms = torch.stack(norms)
    if not any(shardings) and num_groups == len(index) and index == list(range(num_groups)):
        return norms
    squares, total = norms.square(), torch.zeros(num_groups, device=norms.device)
    for sharding in dict.fromkeys(shardings):  # one for most models, whole or sharded
        mine = tuple(i for i, other in enumerate(shardings) if other == sharding)
        where = _on_device(tuple(index[i] for i in mine), norms.device)
        chosen = squares if len(mine) == len(index) else squares[_on_device(mine, norms.device)]
        total += add_shards(torch.zeros_like(total).index_add_(0, where, chosen), sharding)
    return total.sqrt_()


def gradient_norms(named_parameters: Iterable[tuple[str, Tensor]], group_by: GroupBy = "layer") -> dict[str, Tensor]:
    """L2 norm of the gradients of each group of parameters.

    Args:
        named_parameters (`Iterable[tuple[str, Tensor]]`): As from `model.named_parameters()`.
        group_by (`str` or `Callable[[str], str]`, defaults to `"layer"`): `"layer"`, `"module"`, `"parameter"`, or a
            function from a parameter's name to its group's.

    Returns:
        `dict[str, Tensor]`: Group -> scalar, on the gradients' device, in the model's order; groups without any
        gradient are left out. The root of the sum of squares is the total norm.

    Example:

    ```python
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> for p in model.parameters():
    ...     p.grad = torch.ones_like(p)
    >>> {layer: round(norm.item(), 4) for layer, norm in gradient_norms(model.named_parameters()).items()}
    {'0': 2.4495, '1': 1.7321}

    ```
    """
    gradients = [(name, p.grad) for name, p in named_parameters]
    names, norms = measure(gradients, group_names([name for name, _ in gradients], group_by))
    return dict(zip(names, norms, strict=True))


def measure(named_gradients: list[tuple[str, Tensor | None]], groups: dict[str, str]) -> tuple[list[str], Tensor]:
    present = [(groups[name], gradient) for name, gradient in named_gradients if gradient is not None]
    order = {group: i for i, group in enumerate(dict.fromkeys(group for group, _ in present))}
    index = [order[group] for group, _ in present]
    return list(order), group_norms([gradient for _, gradient in present], index, len(order))
