"""RAdam: Adam that rectifies the variance of its early adaptive learning rate."""

from __future__ import annotations

from math import sqrt
from typing import Any

from .._validation import check_flag, check_number
from ..schedules.warmups import r_t
from .adam_family import NO_STEP_YET, AdamFamily, Coefficients


class RAdam(AdamFamily):
    r"""Rectified Adam, Liu et al. 2020, https://arxiv.org/abs/1908.03265.

    While `rho_t > 5`, with `m_hat = m / (1 - beta1^t)` and [`r_t`][hf_warmup.schedules.warmups.r_t]:

        p <- p - lr weight_decay p
        p <- p - lr r_t sqrt(1 - beta2^t) m_hat / (sqrt(v) + eps)

    Before (the first 5 updates for any usual beta2) the moments move and the parameters either do not, as in the
    authors' code, or take the un-normalised step `p <- p - lr m_hat` of the paper's Algorithm 2 and of torch, which can
    be a hundred times larger than update 6.

    Args:
        params (`Iterable`): Parameters, or dictionaries that define parameter groups.
        lr (`float`, defaults to 1e-3): Learning rate, at least 0.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.999)`): Moment coefficients, each in [0, 1).
        eps (`float`, defaults to 1e-8): Added to the root of the second moment, at least 0.
        weight_decay (`float`, defaults to 0.0): At least 0.
        decoupled_weight_decay (`bool`, defaults to `True`): AdamW's decay, by `lr weight_decay` whatever `r_t`; `False`
            adds `weight_decay p` to the gradient.
        degenerated_to_sgd (`bool`, defaults to `False`): Take the un-normalised step while `rho_t <= 5`.
        maximize (`bool`, defaults to `False`): Ascend.
        foreach, fused (`bool`, *optional*): Which of torch's kernels; by default fused where the device has it.
        capturable (`bool`, defaults to `False`): Only `False`; `step()` cannot be captured in a CUDA graph.

    State per parameter: `exp_avg` and `exp_avg_sq`, of its shape, float32 for bfloat16 and float16 parameters; `step`.
    The learning rate in force, `lr r_t`, stands in `group["scheduled_lr"]`.

    Differs from `torch.optim.RAdam` in: decoupled decay and no un-normalised step by default; the fused kernel; `r_t`
    in float64 on the host; an update count for each parameter.

    Raises:
        `ValueError`: For a value out of range, and for a beta2 with which no update would ever be rectified.

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
            decoupled_weight_decay=decoupled_weight_decay,
            degenerated_to_sgd=degenerated_to_sgd,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_flag("degenerated_to_sgd", group["degenerated_to_sgd"])
        if not group["degenerated_to_sgd"]:
            # rho_inf <= 5: no update would ever be made
            check_number("betas[1]", group["betas"][1], 2.0 / 3.0, 1.0, open_low=True, open_high=True)

    def coefficients(self, group: dict[str, Any], t: int) -> Coefficients:
        beta2 = group["betas"][1]
        lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
        l2 = not group["decoupled_weight_decay"]
        rectification = r_t(t, beta2)
        if rectification == 0.0:
            sgd_lr = lr if group["degenerated_to_sgd"] else 0.0
            return NO_STEP_YET._replace(weight_decay=weight_decay if l2 else 0.0, sgd_lr=sgd_lr)
        # AdamW's kernel divides by sqrt(v_hat) + eps where RAdam divides by sqrt(v) + eps, and decays by lr: undo both.
        return Coefficients(
            lr=lr * rectification,
            eps=eps / sqrt(1.0 - beta2**t),
            weight_decay=weight_decay if l2 else weight_decay / rectification,
        )
