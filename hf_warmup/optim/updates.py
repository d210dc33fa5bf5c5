"""The norm of the last update of each parameter, from the optimizer's state: no copy of the weights is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RAdam

from ..norms.measure import local_shard
from ..schedules import unwrap_optimizer
from ..schedules.warmups import radam_warmup
from .adam_family import AdamFamily


_PIECE = 1 << 17  # elements that are computed at a time on a CPU, whose cache holds them


class Form(NamedTuple):
    """The numbers of `p <- p - decay p - (adaptive m / (sqrt(v) / root + eps) + momentum m + gradient g)`."""

    decay: Any = 0.0
    adaptive: Any = 0.0
    root: Any = 1.0
    eps: float = 0.0
    momentum: Any = 0.0
    gradient: float = 0.0


def _count(step: Tensor) -> Any:
    """Return an update count: a number, or on an accelerator a tensor, because reading it would wait."""
    return step.item() if step.device.type == "cpu" else step.double()


def _decay(group: dict[str, Any], lr: Any) -> Any:
    return lr * group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0


def _of_adam(optimizer: Any, group: dict[str, Any], state: dict[str, Any]) -> Form:
    (beta1, beta2), t, lr = group["betas"], _count(state["step"]), group["lr"]
    return Form(_decay(group, lr), lr / (1 - beta1**t), (1 - beta2**t) ** 0.5, group["eps"])


def _of_radam(optimizer: Any, group: dict[str, Any], state: dict[str, Any]) -> Form:
    (beta1, beta2), t, lr = group["betas"], int(state["step"]), group["lr"]
    m_hat = lr / (1 - beta1**t)
    if not (rectification := radam_warmup(t - 1, beta2=beta2)):
        return Form(_decay(group, lr), momentum=m_hat)
    return Form(_decay(group, lr), m_hat * rectification * (1 - beta2**t) ** 0.5, 1.0, group["eps"])


def _of_family(optimizer: AdamFamily, group: dict[str, Any], state: dict[str, Any]) -> Form:
    (beta1, beta2), t = group["betas"], int(state["step"])
    lr, eps, weight_decay, sgd_lr = optimizer.coefficients(group, t)
    decay = lr * weight_decay if group["decoupled_weight_decay"] and lr else _decay(group, sgd_lr)
    return Form(decay, lr / (1 - beta1**t), (1 - beta2**t) ** 0.5, eps, sgd_lr / (1 - beta1**t))


def _of_sgd(optimizer: Any, group: dict[str, Any], state: dict[str, Any]) -> Form:
    lr, momentum = group["lr"], group["momentum"]
    gradient = -lr if group["maximize"] else lr
    if momentum and not group["nesterov"]:
        return Form(momentum=lr)  # the buffer contains the weight decay
    return Form(lr * group["weight_decay"], momentum=lr * momentum, gradient=gradient)


_FORMS: dict[type[Optimizer], Callable[[Any, dict[str, Any], dict[str, Any]], Form]] = {
    AdamFamily: _of_family,
    Adam: _of_adam,  # and AdamW
    RAdam: _of_radam,
    SGD: _of_sgd,
}


def knows_updates_of(optimizer: Any) -> bool:
    """Return whether [`update_norms`] knows the update of this optimizer."""
    return isinstance(unwrap_optimizer(optimizer), tuple(_FORMS))


@torch.no_grad()
def update_norms(optimizer: Any) -> dict[Tensor, tuple[Tensor, Tensor]]:
    """Return the norm of the last update of each parameter, and the norm of the parameter itself.

    The update is the difference of the weights after and before it, with weight decay. Call this function after
    `optimizer.step()` and before the gradients are zeroed and the schedule moves on. Of a sharded parameter both norms
    are those of the shard.

    Args:
        optimizer (`Optimizer`): RAdam, AdamWarmup or GIAdam of hf_warmup, or torch's Adam, AdamW, RAdam or SGD.

    Returns:
        `dict[Tensor, tuple[Tensor, Tensor]]`: Two scalars for each parameter that has a gradient, on its device.

    Example:

    ```python
    >>> p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.0)
    >>> p.grad = torch.ones(2)
    >>> optimizer.step()
    >>> update, weight = update_norms(optimizer)[p]
    >>> round(update.item(), 4), round(weight.item(), 4)  # 0.1 sqrt(2), and the norm of (2.9, 3.9)
    (0.1414, 4.86)

    ```
    """
    optimizer = unwrap_optimizer(optimizer)
    form_of = next(form for cls, form in _FORMS.items() if isinstance(optimizer, cls))
    made = None if (skipped := getattr(optimizer, "found_inf", None)) is None else 1.0 - skipped
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = optimizer.state.get(p, {})
            update, weight = _norms(p, state, form_of(optimizer, group, state))
            found[p] = (update if made is None else update * made.to(update.device), weight)
    return found


def _norms(p: Tensor, state: dict[str, Any], form: Form) -> tuple[Tensor, Tensor]:
    momentum, square = state.get("exp_avg", state.get("momentum_buffer")), state.get("exp_avg_sq")
    square = state.get("max_exp_avg_sq", square)
    columns = [each if each is None else local_shard(each.detach()).reshape(-1) for each in (momentum, square, p.grad)]
    flat = local_shard(p.detach()).reshape(-1)
    size = _PIECE if p.device.type == "cpu" else max(1, flat.numel())
    squares = [
        _squares(
            form,
            flat[i : i + size].float(),
            *(each if each is None else each[i : i + size].float() for each in columns),
        )
        for i in range(0, flat.numel(), size)
    ]
    if not squares:  # an empty shard
        return torch.zeros((), device=p.device), torch.zeros((), device=p.device)
    update, weight = torch.stack(squares).sum(0).sqrt()
    return update, weight


def _squares(form: Form, p: Tensor, m: Tensor | None, v: Tensor | None, g: Tensor | None) -> Tensor:
    """Return the sums of squares of an update and of the values after it."""
    if v is not None and m is not None:
        update = m / v.sqrt().div_(form.root).add_(form.eps)
        update *= form.adaptive
    else:
        update = torch.zeros_like(p)
    if m is not None:
        update += m * form.momentum
    if form.gradient and g is not None:
        update.add_(g, alpha=form.gradient)
    # `p` is the value after the update, `p_old (1 - decay) - update`, and the difference is `-(update + decay p_old)`.
    update.add_(p * form.decay).div_(1.0 - form.decay)
    return torch.stack((torch.dot(update, update), torch.dot(p, p)))
