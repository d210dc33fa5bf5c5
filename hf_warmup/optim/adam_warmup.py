"""AdamWarmup: AdamW with a built-in linear warmup."""

from __future__ import annotations

import warnings
from typing import Any, Unpack

from .._validation import check_number
from ..schedules.warmups import linear_warmup
from .adam_family import AdamFamily, KernelOptions


class AdamWarmup(AdamFamily):
    r"""AdamW with the learning rate `lr min(1, t / warmup_steps)` at update `t`.

    The warmup is [`linear_warmup`][hf_warmup.schedules.warmups.linear_warmup]. Updates are counted for each parameter,
    so a parameter that is unfrozen later warms up as well, which no schedule can do. Combine it with a schedule that
    has no warmup.

    Args:
        params (`Iterable`): Parameters, or dictionaries that define parameter groups.
        lr (`float`, defaults to 1e-3): Learning rate after the warmup, at least 0.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.999)`): Decay rates of the moments, each in [0, 1).
        eps (`float`, defaults to 1e-8): Added to the root of the second moment, at least 0.
        weight_decay (`float`, defaults to 0.0): Decoupled weight decay, multiplied by the effective learning rate, at
            least 0.
        warmup_steps (`int`, defaults to 0): Number of updates until the full learning rate. With 0 the optimizer is
            AdamW, and its first update warns. An optimizer does not know the length of the run and takes no ratio;
            `WarmupTrainingArguments(warmup_steps=0.06)` does.
        options: `maximize`, `foreach`, `fused`, `capturable` and `differentiable`, as in [`RAdam`].

    State per parameter: `exp_avg` and `exp_avg_sq` of its shape, float32 for bfloat16 and float16 parameters, and the
    scalar `step`. That is 8 bytes per element for parameters of at most 32 bits. `group["scheduled_lr"]` holds the
    effective learning rate.

    Differences from `torch.optim.AdamW`: the warmup, an update count per parameter, and no weight decay by default.

    The warmup: Goyal et al. 2017, https://arxiv.org/abs/1706.02677, and for Adam Ma & Yarats 2019,
    https://arxiv.org/abs/1910.04209. AdamW: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101.

    Raises:
        `ValueError`: If an argument is out of range.

    Example:

    ```python
    >>> import torch
    >>> p = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = AdamWarmup([p], lr=0.1, warmup_steps=4)
    >>> for t in range(5):
    ...     p.grad = torch.ones(1)
    ...     optimizer.step()
    ...     print(f"{optimizer.param_groups[0]['scheduled_lr']:.3f}", end=" ")
    0.025 0.050 0.075 0.100 0.100

    ```
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        warmup_steps: int = 0,
        **options: Unpack[KernelOptions],
    ):
        super().__init__(params, lr, betas, eps, weight_decay, {"warmup_steps": warmup_steps}, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["warmup_steps"] = check_number("warmup_steps", group["warmup_steps"], integer=True)

    def warmup(self, group: dict[str, Any], t: int) -> float:
        # Not in the constructor: the length may be set later, for example by `create_scheduler`.
        if t == 1 and not group["warmup_steps"]:
            warnings.warn("AdamWarmup with warmup_steps=0 does not warm up: expected at least 1.", stacklevel=2)
        return linear_warmup(t - 1, num_warmup_steps=group["warmup_steps"])
