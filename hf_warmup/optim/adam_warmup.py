"""AdamWarmup: AdamW that warms up by itself."""

from __future__ import annotations

import warnings
from typing import Any

from .._validation import check_number
from .adam_family import AdamFamily, Coefficients


class AdamWarmup(AdamFamily):
    r"""AdamW whose learning rate at update `t` is `lr min(1, t / warmup_steps)`.

    The count is the parameter's own, so one that is unfrozen later warms up too: what no schedule can do. Use it with
    a schedule that does not warm up.

    Args:
        params (`Iterable`): Parameters, or dictionaries that define parameter groups.
        lr (`float`, defaults to 1e-3): Learning rate after the warmup, at least 0.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.999)`): Moment coefficients, each in [0, 1).
        eps (`float`, defaults to 1e-8): Added to the root of the second moment, at least 0.
        weight_decay (`float`, defaults to 0.0): Decoupled, by the learning rate in force; at least 0.
        warmup_steps (`int`, defaults to 0): Updates until the full learning rate; at 0, which is AdamW, the first
            update warns. A ratio of a run is refused: an optimizer does not know how long the run is,
            `WarmupTrainingArguments(warmup_steps=0.06)` does.
        maximize (`bool`, defaults to `False`): Ascend.
        foreach, fused (`bool`, *optional*): Which of torch's kernels; by default fused where the device has it.
        capturable (`bool`, defaults to `False`): Only `False`; `step()` cannot be captured in a CUDA graph.

    State per parameter: `exp_avg` and `exp_avg_sq`, of its shape, float32 for bfloat16 and float16 parameters; `step`.
    The learning rate in force stands in `group["scheduled_lr"]`.

    Differs from `torch.optim.AdamW` in: the warmup; an update count for each parameter; weight decay 0 by default.
    The warmup: Goyal et al. 2017, https://arxiv.org/abs/1706.02677; on Adam: Ma & Yarats 2019,
    https://arxiv.org/abs/1910.04209. AdamW: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101.

    Raises:
        `ValueError`: For a value out of range.

    Example:

    ```python
    >>> import torch
    >>> p = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = AdamWarmup([p], lr=0.1, warmup_steps=4)
    >>> for t in range(5):
    ...     p.grad = torch.ones(1)
    ...     optimizer.step()
    ...     print(f"{p.item():.3f}", end=" ")
    0.975 0.925 0.850 0.750 0.650

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
            warmup_steps=warmup_steps,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["warmup_steps"] = check_number("warmup_steps", group["warmup_steps"], integer=True)

    def coefficients(self, group: dict[str, Any], t: int) -> Coefficients:
        # Not in the constructor: a schedule may hand the number over (`create_scheduler`, `WarmupTrainer`).
        if t == 1 and not group["warmup_steps"]:
            warnings.warn("AdamWarmup with warmup_steps=0 does not warm up: expected at least 1.", stacklevel=2)
        factor = t / group["warmup_steps"] if t < group["warmup_steps"] else 1.0
        return Coefficients(group["lr"] * factor, group["eps"], group["weight_decay"])
