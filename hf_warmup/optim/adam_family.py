"""The update that RAdam, AdamWarmup and GIAdam share: Adam with coefficients that depend on the update count.

For update `t`, a subclass returns the learning rate, `eps` and the weight decay. torch's Adam kernel, fused on devices
that have it, does the work. The state is that of torch's optimizers (`step`, `exp_avg`, `exp_avg_sq`), so a checkpoint
can be moved between these classes and torch's AdamW and RAdam.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

from .._validation import check_number, short_repr


LOW_PRECISION = (torch.bfloat16, torch.float16)
_UNSUPPORTED = {
    "capturable": "updates are counted on the CPU, and a CUDA graph would repeat one of them.",
    "differentiable": "the kernels update the parameters in place.",
}


_Entry = tuple[Tensor, Tensor, dict[str, Tensor]]  # parameter, gradient, state


class Coefficients(NamedTuple):
    """The numbers of one update: `p -= lr weight_decay p`, then `p -= lr m_hat / (sqrt(v_hat) + eps)`."""

    lr: float
    eps: float
    weight_decay: float
    sgd_lr: float = 0.0  # additionally `p -= sgd_lr m_hat`: RAdam's step before its rectification is defined

    @property
    def effective_lr(self) -> float:
        """The learning rate of the one step that moves the parameters."""
        return self.lr or self.sgd_lr


class KernelOptions(TypedDict, total=False):
    """The keyword arguments that all optimizers of the family take, with torch's meaning."""

    maximize: bool
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


@lru_cache
def fused_is_supported(device_type: str) -> bool:
    """Return whether torch has a fused Adam kernel for this device type, by trying to construct a fused optimizer."""
    try:
        torch.optim.AdamW([torch.zeros(1, device=device_type, requires_grad=True)], fused=True)
    except RuntimeError:
        return False
    return True


def uses_fused(group: dict[str, Any], device: torch.device) -> bool:
    """Return whether parameters of `group` on `device` are updated by torch's fused kernel."""
    return bool(group["fused"]) or (
        group["foreach"] is None and group["fused"] is None and fused_is_supported(device.type)
    )


class AdamFamily(Optimizer):
    """Base class of the optimizers in this package. See [`RAdam`][hf_warmup.optim.RAdam] for the shared arguments.

    `own` holds the options that only the subclass has. They become keys of the parameter groups.
    """

    found_inf: Tensor | None = None  # as torch's fused kernels take it: 1 on the device skips the next update
    _unconfirmed: tuple[Tensor, Any, list[Tensor]] | None = None  # `found_inf` of the last update, and its counts

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        own: dict[str, Any],
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": True,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
            "scheduled_lr": 0.0,
            **own,
        }
        super().__init__(params, defaults)

    def warmup(self, group: dict[str, Any], t: int) -> float:
        """Return the multiplier of the learning rate at update `t`, counted from 1: a curve of `schedules.warmups`."""
        return 1.0

    def coefficients(self, group: dict[str, Any], t: int) -> Coefficients:
        """Return the coefficients of update `t`, counted from 1, as Python floats."""
        return Coefficients(group["lr"] * self.warmup(group, t), group["eps"], group["weight_decay"])

    def effective_lr(self, group: dict[str, Any], t: int) -> float:
        """Return the learning rate that update `t` of a parameter in `group` is made with.

        Args:
            group (`dict`): A parameter group. Its `lr` is the schedule's learning rate.
            t (`int`): The update of the parameter, counted from 1.
        """
        return self.coefficients(group, t).effective_lr

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise `ValueError` if an option is invalid. Convert numbers to Python's own for `weights_only` loads."""
        for key, reason in _UNSUPPORTED.items():
            if group[key]:
                raise ValueError(f"{key}={group[key]!r}: expected False, since {reason}")
        if isinstance(group["lr"], Tensor):
            raise ValueError(
                f"lr={short_repr(group['lr'])}: lr as a Tensor is not supported, because the coefficients of an update "
                "are computed on the CPU. Pass `lr.item()`."
            )
        for key in ("lr", "eps", "weight_decay"):
            group[key] = check_number(key, group[key])
        betas = group["betas"]
        if not isinstance(betas, Sequence) or len(betas) != 2:  # Hydra passes another sequence than `list`
            raise ValueError(f"betas={short_repr(betas)}: expected two numbers in [0, 1).")
        group["betas"] = tuple(check_number(f"betas[{i}]", betas[i], 0.0, 1.0, open_high=True) for i in (0, 1))
        if group["foreach"] and group["fused"]:
            raise ValueError("foreach=True and fused=True: expected at most one of them.")
        for p in group["params"]:
            if p.is_complex():
                raise ValueError(
                    f"A parameter of shape {tuple(p.shape)} is complex, which {type(self).__name__} does not support. "
                    "Train its real and imaginary part as two parameters, or use `torch.optim.AdamW`."
                )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as torch's optimizers do. Raise `ValueError` if one of its options is invalid."""
        super().add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def init_state(self, p: Tensor) -> dict[str, Tensor]:
        """Return the initial state of a parameter. Moments are float32 for bfloat16 and float16 parameters."""
        dtype = torch.float32 if p.dtype in LOW_PRECISION else p.dtype
        return {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format),
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, and return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            # In a compiled graph the coefficients would be constants, and each update would be compiled again. As a
            # decorator, `disable` would import the compiler together with this module.
            torch.compiler.disable(self._update)()
        else:
            self._update()
        return loss

    def confirm_updates(self) -> None:
        """Take back the count of the last update if it was skipped. Wait for that update only, not for the device."""
        if self._unconfirmed is None:
            return
        (found_inf, event, counts), self._unconfirmed = self._unconfirmed, None
        if event is not None:
            event.synchronize()
        if found_inf:
            torch._foreach_sub_(counts, 1.0)

    def _update(self) -> None:
        self.confirm_updates()
        found_inf, counts = self.found_inf, []
        if found_inf is not None and not all(
            uses_fused(group, p.device) for group in self.param_groups for p in group["params"]
        ):
            if found_inf:
                return
            found_inf = None
        for group in self.param_groups:
            latest = 0
            for (device, dtype, _, t), bucket in self._buckets(group).items():
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    reason = _UNSUPPORTED["capturable"]
                    raise RuntimeError(f"{type(self).__name__}.step() cannot be captured: {reason}")
                coefficients = self.coefficients(group, t)
                counts += [state["step"] for _, _, state in bucket]
                if dtype in LOW_PRECISION:
                    for p, grad, state in bucket:  # one at a time: the extra memory is one parameter's float32 copy
                        wide = p.float()
                        _adam_([(wide, grad.float(), state)], t, group, coefficients, found_inf)
                        p.copy_(wide)
                else:
                    _adam_(bucket, t, group, coefficients, found_inf)
                if t > latest:
                    latest, group["scheduled_lr"] = t, coefficients.effective_lr
        if found_inf is not None:
            event = None
            flag = found_inf.to("cpu", non_blocking=True)
            if found_inf.device.type != "cpu":
                event = torch.Event(found_inf.device)
                event.record()
            self._unconfirmed = flag, event, counts

    def _buckets(self, group: dict[str, Any]) -> dict[tuple[torch.device, torch.dtype, Any, int], list[_Entry]]:
        """Return the parameters with a gradient by (device, dtype, mesh, update), one kernel call for each.

        The mesh is that of a `DTensor`; a kernel does not take plain tensors beside it. The update is counted for each
        parameter: one that is unfrozen later starts at `t = 1`.
        """
        buckets = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients (shape {tuple(p.shape)}).")
            state = self.state[p]
            t = 1 + (int(state["step"].item()) if state else 0)
            if t == 1:  # of a new parameter, or after a first update that was skipped
                state.update(self.init_state(p))
            buckets[p.device, p.dtype, getattr(p, "device_mesh", None), t].append((p, p.grad, state))
        return buckets

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch's optimizers do."""
        self.confirm_updates()
        return super().state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():  # a checkpoint of torch's AdamW lacks the options of a subclass
                group.setdefault(key, value)
            # With capturable=True, torch's optimizers keep the step and possibly the learning rate on the device.
            group["capturable"], group["lr"] = False, float(group["lr"])
        for p_state in self.state.values():
            if "step" in p_state:
                p_state["step"] = torch.tensor(float(p_state["step"]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of one of these optimizers, or of torch's AdamW or RAdam.

        torch casts loaded moments to the parameter's dtype. Here the moments of 16-bit parameters stay float32.

        Raises:
            `ValueError`: If the state was saved with `amsgrad=True`.
        """
        self._unconfirmed = None
        if any(group.get("amsgrad") for group in state_dict["param_groups"]):
            raise ValueError(f"amsgrad=True in the loaded state: expected False, {type(self).__name__} has no amsgrad.")
        super().load_state_dict(state_dict)
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, p in zip(saved_ids, params, strict=True):
            saved = state_dict["state"].get(saved_id)
            if saved and p.dtype in LOW_PRECISION:
                for key in ("exp_avg", "exp_avg_sq"):
                    self.state[p][key] = saved[key].to(device=p.device, dtype=torch.float32, copy=True)


def _in_one_layout(p: Tensor, grad: Tensor, state: dict[str, Tensor]) -> _Entry:
    """Return the tensors of a parameter, copied to contiguous ones if their layouts differ or leave gaps in memory.

    torch's fused kernels walk through the memory of all four side by side. For a view they would be silently wrong.
    """
    m, v = state["exp_avg"], state["exp_avg_sq"]
    if p.is_contiguous() and grad.is_contiguous() and m.is_contiguous() and v.is_contiguous():  # the usual case
        return p, grad, state
    if all(each.is_contiguous(memory_format=torch.channels_last) for each in (p, grad, m, v)):
        return p, grad, state
    state["exp_avg"], state["exp_avg_sq"] = m.contiguous(), v.contiguous()
    return p.contiguous(), grad.contiguous(), state


def _adam_(
    bucket: list[_Entry], t: int, group: dict[str, Any], coefficients: Coefficients, found_inf: Tensor | None
) -> None:
    """Make update `t` of the parameters in `bucket` with torch's kernel that `group` asks for."""
    lr, eps, weight_decay, sgd_lr = coefficients
    beta1, beta2 = group["betas"]
    decoupled = group["decoupled_weight_decay"]
    device = bucket[0][0].device
    fused = uses_fused(group, device)
    entries = [_in_one_layout(*each) for each in bucket] if fused else bucket
    params, grads, states = map(list, zip(*entries, strict=True))
    exp_avgs, exp_avg_sqs, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    found_inf = None if found_inf is None else found_inf.to(device, non_blocking=True)
    hyper: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay, "eps": eps}
    hyper |= {"amsgrad": False, "maximize": group["maximize"]}
    if fused:
        # torch's public function increments each `step` separately, which takes longer on a CPU than the update of a
        # small tensor. The kernel is called directly with one count for all. It is sent to the device, not read.
        torch._foreach_copy_(steps, [torch.tensor(float(t))] * len(steps))
        kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
        counts = [torch.full((), float(t), device=device)] * len(params)
        kernel(params, grads, exp_avgs, exp_avg_sqs, [], counts, found_inf=found_inf, **hyper)
    else:
        hyper |= {"decoupled_weight_decay": decoupled, "foreach": group["foreach"], "fused": False}
        adam(params, grads, exp_avgs, exp_avg_sqs, [], steps, **hyper)
    if sgd_lr:
        made = 1.0 if found_inf is None else 1.0 - found_inf
        for p, exp_avg in zip(params, exp_avgs, strict=True):
            if decoupled:
                p.mul_(1.0 - sgd_lr * group["weight_decay"] * made)
            p.add_(exp_avg if found_inf is None else exp_avg * made, alpha=-sgd_lr / (1.0 - beta1**t))
    for (own, _, _), p in zip(bucket, params, strict=True):
        if p is not own:
            own.copy_(p)


def effective_learning_rates(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of the last update for each parameter group that has parameters.

    An optimizer with a warmup of its own (RAdam, AdamWarmup, schedule-free ones) keeps it in `group["scheduled_lr"]`.
    For every other optimizer it is the schedule's learning rate, `group["lr"]`. Call this function after
    `optimizer.step()` and before `scheduler.step()`.

    Example:

    ```python
    >>> from hf_warmup import AdamWarmup
    >>> p = torch.nn.Parameter(torch.ones(1))
    >>> p.grad = torch.ones(1)
    >>> optimizer = AdamWarmup([p], lr=0.1, warmup_steps=4)
    >>> optimizer.step()
    >>> effective_learning_rates(optimizer)
    [0.025]

    ```
    """
    groups = [group for group in optimizer.param_groups if group["params"]]
    return [float(group.get("scheduled_lr", group["lr"])) for group in groups]
