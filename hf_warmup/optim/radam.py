"""RAdam: Adam with a rectified variance of its adaptive learning rate."""

from __future__ import annotations

from math import sqrt
from typing import Any, Unpack

from .._validation import check_number
from ..schedules.warmups import radam_warmup
from .adam_family import AdamFamily, Coefficients, KernelOptions


class RAdam(AdamFamily):
    r"""Rectified Adam, Liu et al. 2020, https://arxiv.org/abs/1908.03265.

    Once `rho_t > 5`, with `m_hat = m / (1 - beta1^t)` and the rectification `r_t` of
    [`radam_warmup`][hf_warmup.schedules.warmups.radam_warmup]:

        p <- p - lr weight_decay p
        p <- p - lr r_t sqrt(1 - beta2^t) m_hat / (sqrt(v) + eps)

    Before that (the first 5 updates for any usual beta2) only the moments are updated, as in the authors' code. With
    `degenerated_to_sgd` the parameters take the un-normalized step `p <- p - lr m_hat` of the paper's Algorithm 2 and
    of torch, which can be a hundred times larger than update 6.

    Args:
        params (`Iterable`): Parameters, or dictionaries that define parameter groups.
        lr (`float`, defaults to 1e-3): Learning rate, at least 0.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.999)`): Decay rates of the moments, each in [0, 1).
        eps (`float`, defaults to 1e-8): Added to the root of the second moment, at least 0.
        weight_decay (`float`, defaults to 0.0): Weight decay, at least 0.
        decoupled_weight_decay (`bool`, defaults to `True`): Use AdamW's decay, `lr weight_decay` whatever `r_t` is.
            `False` adds `weight_decay p` to the gradient.
        degenerated_to_sgd (`bool`, defaults to `False`): Take the un-normalized step while `rho_t <= 5`.
        options: Keyword arguments that all optimizers of this package share. `maximize` (`bool`, defaults to `False`):
            Ascend. `foreach`, `fused` (`bool`, *optional*): The kernel of torch to use; by default the fused one on
            devices that have it. `capturable`, `differentiable`: Only `False` is supported.

    State per parameter: `exp_avg` and `exp_avg_sq` of its shape, float32 for bfloat16 and float16 parameters, and the
    scalar `step`. That is 8 bytes per element for parameters of at most 32 bits. `group["scheduled_lr"]` holds the
    effective learning rate, `lr r_t`.

    Differences from `torch.optim.RAdam`: decoupled weight decay and no un-normalized step by default, the fused kernel,
    `r_t` in float64 on the CPU, and an update count per parameter. Complex parameters and tensor learning rates are
    not supported.

    Raises:
        `ValueError`: If an argument is out of range, or if no update would ever be rectified with this beta2.

    Example:

    ```python
    >>> import torch
    >>> p = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = RAdam([p], lr=0.01)
    >>> for t in range(50):
    ...     p.grad = torch.ones(1)
    ...     optimizer.step()
    >>> f"{p.item():.3f} {optimizer.param_groups[0]['scheduled_lr']:.5f}"
    '0.955 0.00148'

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
        decoupled_weight_decay: bool = True,
        degenerated_to_sgd: bool = False,
        **options: Unpack[KernelOptions],
    ):
        own = {"decoupled_weight_decay": decoupled_weight_decay, "degenerated_to_sgd": degenerated_to_sgd}
        super().__init__(params, lr, betas, eps, weight_decay, own, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if not group["degenerated_to_sgd"]:  # with rho_inf <= 5 no update would ever be made
            check_number("betas[1]", group["betas"][1], 2.0 / 3.0, 1.0, open_low=True, open_high=True)

    def warmup(self, group: dict[str, Any], t: int) -> float:
        return radam_warmup(t - 1, beta2=group["betas"][1])

    def coefficients(self, group: dict[str, Any], t: int) -> Coefficients:
        lr, eps, weight_decay = super().coefficients(group, t)[:3]
        rectification, l2 = self.warmup(group, t), not group["decoupled_weight_decay"]
        if rectification == 0.0:
            # With lr=0 the kernel updates the moments and leaves the parameters. Any eps above 0 will do.
            sgd_lr = group["lr"] if group["degenerated_to_sgd"] else 0.0
            return Coefficients(0.0, 1.0, weight_decay if l2 else 0.0, sgd_lr)
        # The kernel divides by sqrt(v_hat) + eps, RAdam by sqrt(v) + eps. The kernel decays by lr r_t, RAdam by lr.
        return Coefficients(
            lr, eps / sqrt(1.0 - group["betas"][1] ** t), weight_decay if l2 else weight_decay / rectification
        )
