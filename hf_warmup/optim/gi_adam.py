"""GIAdam: AdamW whose second moment starts at the square of the first gradient."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from .adam_family import AdamFamily, KernelOptions


class GIAdam(AdamFamily):
    r"""Gradient-initialized AdamW, Kalra & Barkeshli 2024, https://arxiv.org/abs/2406.09405.

    AdamW with `v_0 = g_1^2` instead of 0. The bias correction of `v` is kept, so `v_hat` starts `1 / (1 - beta2)` times
    too large and the update is damped by about `sqrt(1 - beta2^t)`. The size of the first update is
    `lr sqrt(1 - beta2)` instead of `lr`. No length has to be chosen.

    Args:
        params (`Iterable`): Parameters, or dictionaries that define parameter groups.
        lr (`float`, defaults to 1e-3): Learning rate, at least 0.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.999)`): Decay rates of the moments, each in [0, 1).
        eps (`float`, defaults to 1e-8): Added to the root of the second moment, at least 0.
        weight_decay (`float`, defaults to 0.0): Decoupled weight decay, at least 0.
        options: `maximize`, `foreach`, `fused`, `capturable` and `differentiable`, as in [`RAdam`].

    State per parameter: `exp_avg` and `exp_avg_sq` of its shape, float32 for bfloat16 and float16 parameters, and the
    scalar `step`. That is 8 bytes per element for parameters of at most 32 bits.

    Differences from `torch.optim.AdamW`: the initial second moment, an update count per parameter, and no weight decay
    by default. A state loaded from AdamW continues as AdamW would.

    Raises:
        `ValueError`: If an argument is out of range.

    Example:

    ```python
    >>> import torch
    >>> p = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = GIAdam([p], lr=0.1)
    >>> p.grad = torch.tensor([7.0])
    >>> optimizer.step()
    >>> f"{1 - p.item():.5f}"  # 0.1 * sqrt(0.001)
    '0.00316'

    ```
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[KernelOptions],
    ):
        super().__init__(params, lr, betas, eps, weight_decay, {}, **options)

    def init_state(self, p: Tensor) -> dict[str, Tensor]:
        """Return the initial state of a parameter, with `exp_avg_sq` the square of its gradient."""
        state = super().init_state(p)
        assert p.grad is not None
        state["exp_avg_sq"].copy_(p.grad).square_()
        return state
