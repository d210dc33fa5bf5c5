"""GIAdam: Adam whose second moment starts at the first gradient's square."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .adam_family import AdamFamily, Coefficients


class GIAdam(AdamFamily):
    r"""Gradient-initialised AdamW, Kalra & Barkeshli 2024, https://arxiv.org/abs/2406.09405.

    AdamW with `v_0 = g_1^2` instead of 0 and its bias correction kept, so that `v_hat` starts `1 / (1 - beta2)` too
    large and the update is damped by about `sqrt(1 - beta2^t)`: the first is `lr sqrt(1 - beta2)` instead of `lr`, with
    no length to choose.

    Args:
        params (`Iterable`): Parameters, or dictionaries that define parameter groups.
        lr (`float`, defaults to 1e-3): Learning rate, at least 0.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.999)`): Moment coefficients, each in [0, 1).
        eps (`float`, defaults to 1e-8): Added to the root of the second moment, at least 0.
        weight_decay (`float`, defaults to 0.0): Decoupled; at least 0.
        maximize (`bool`, defaults to `False`): Ascend.
        foreach, fused (`bool`, *optional*): Which of torch's kernels; by default fused where the device has it.
        capturable (`bool`, defaults to `False`): Only `False`; `step()` cannot be captured in a CUDA graph.

    State per parameter: `exp_avg` and `exp_avg_sq`, of its shape, float32 for bfloat16 and float16 parameters; `step`.

    Differs from `torch.optim.AdamW` in: the second moment's first value; an update count for each parameter; weight
    decay 0 by default. A state loaded from AdamW goes on as AdamW would.

    Raises:
        `ValueError`: For a value out of range.

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
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
        )

    def init_state(self, p: Tensor) -> dict[str, Tensor]:
        state = super().init_state(p)
        state["exp_avg_sq"].copy_(p.grad).square_()
        return state

    def coefficients(self, group: dict[str, Any], t: int) -> Coefficients:
        return Coefficients(group["lr"], group["eps"], group["weight_decay"])
