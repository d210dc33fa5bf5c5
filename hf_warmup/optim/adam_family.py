"""The step that RAdam, AdamWarmup and GIAdam share: one Adam update whose coefficients change with the update count.

For update `t` a subclass says what the learning rate, `eps` and the weight decay are; torch's own Adam kernel (fused
where the device has it) does the work. State is torch's (`step`, `exp_avg`, `exp_avg_sq`), so checkpoints move between
these classes and torch's AdamW and RAdam in both directions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

from .._validation import check_flag, check_number, short_repr


LOW_PRECISION = (torch.bfloat16, torch.float16)
NOT_CAPTURABLE = "updates are counted on the host, a CUDA graph would repeat one of them."


class Coefficients(NamedTuple):
    """What update `t` uses: `p -= lr weight_decay p`, then `p -= lr m_hat / (sqrt(v_hat) + eps)`."""

    lr: float
    eps: float
    weight_decay: float
    sgd_lr: float = 0.0  # where there is no adaptive step yet, `p -= sgd_lr m_hat` instead


# Both moments move, the parameters do not: with lr 0 any eps above 0 will do.
NO_STEP_YET = Coefficients(lr=0.0, eps=1.0, weight_decay=0.0)


@lru_cache
def fused_is_supported(device_type: str) -> bool:
    """Whether torch has a fused Adam kernel for this kind of device, found out at the constructor's door."""
    try:
        torch.optim.AdamW([torch.zeros(1, device=device_type, requires_grad=True)], fused=True)
    except RuntimeError:
        return False
    return True


class AdamFamily(Optimizer, ABC):
    """Base of the optimizers here; see [`RAdam`] for the arguments they share."""

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        decoupled_weight_decay: bool = True,
        **own: Any,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "scheduled_lr": 0.0,
            **own,
        }
        super().__init__(params, defaults)

    @abstractmethod
    def coefficients(self, group: dict[str, Any], t: int) -> Coefficients:
        """The coefficients of update `t` (counted from 1), in float64 on the host."""

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse a value out of range and make the others plain Python numbers, which a safe load accepts."""
        if group["capturable"]:
            raise ValueError(f"capturable={group['capturable']!r}: expected False, since {NOT_CAPTURABLE}")
        for key in ("lr", "eps", "weight_decay"):
            group[key] = check_number(key, group[key])
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas={short_repr(betas)}: expected two numbers in [0, 1).")
        group["betas"] = tuple(
            check_number(f"betas[{i}]", beta, 0.0, 1.0, open_high=True) for i, beta in enumerate(betas)
        )
        for key in ("maximize", "decoupled_weight_decay"):
            check_flag(key, group[key])
        for key in ("foreach", "fused"):
            check_flag(key, group[key], optional=True)
        if group["foreach"] and group["fused"]:
            raise ValueError("foreach=True and fused=True: expected at most one of them.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; its values are checked like the constructor's."""
        super().add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def init_state(self, p: Tensor) -> dict[str, Tensor]:
        """Moments are float32 for bfloat16 and float16 parameters, else in the parameter's dtype."""
        dtype = torch.float32 if p.dtype in LOW_PRECISION else p.dtype
        return {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format),
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            # As constants of a graph the coefficients would be compiled anew each update. (The decorator would import
            # the compiler with this file.)
            torch.compiler.disable(self._update)()
        else:
            self._update()
        return loss

    def _update(self) -> None:
        for group in self.param_groups:
            latest = 0
            for (device, dtype, t), params in self._buckets(group).items():
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    raise RuntimeError(f"{type(self).__name__}.step() cannot be captured: {NOT_CAPTURABLE}")
                coefficients = self.coefficients(group, t)
                if dtype in LOW_PRECISION:
                    for p in params:  # one at a time: one parameter's float32 copies are all the extra memory
                        wide = p.float()
                        self._kernel([wide], [p.grad.float()], [self.state[p]], t, group, coefficients)
                        p.copy_(wide)
                else:
                    states = [self.state[p] for p in params]
                    self._kernel(params, [p.grad for p in params], states, t, group, coefficients)
                if t > latest:
                    latest, group["scheduled_lr"] = t, coefficients.lr or coefficients.sgd_lr

    def _buckets(self, group: dict[str, Any]) -> dict[tuple[torch.device, torch.dtype, int], list[Tensor]]:
        """Parameters with a gradient by (device, dtype, update they are about to make): one kernel call each.

        The count is the parameter's own: one that is unfrozen later starts at `t = 1`.
        """
        buckets = defaultdict(list)
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            dtype = p.dtype
            if grad.is_sparse or dtype.is_complex:
                kind = "sparse gradients" if grad.is_sparse else "complex parameters"
                raise RuntimeError(f"{type(self).__name__} does not support {kind} (shape {tuple(p.shape)}).")
            state = self.state[p]
            if not state:
                state.update(self.init_state(p))
            buckets[p.device, dtype, int(state["step"].item()) + 1].append(p)
        return buckets

    def _kernel(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Tensor]],
        t: int,
        group: dict[str, Any],
        coefficients: Coefficients,
    ) -> None:
        lr, eps, weight_decay, sgd_lr = coefficients
        beta1, beta2 = group["betas"]
        device, decoupled = params[0].device, group["decoupled_weight_decay"]
        moments = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq")]
        steps = [state["step"] for state in states]
        foreach, fused = group["foreach"], group["fused"]
        if foreach is None and fused is None and fused_is_supported(device.type):
            fused = True
        hyper = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay, "eps": eps}
        hyper |= {"amsgrad": False, "maximize": group["maximize"]}
        if fused:
            # Not through torch's function around the kernel: it raises each count on its own, which on a CPU takes
            # longer than a small tensor's update. Here one count serves all; it is sent to the device, never fetched.
            torch._foreach_copy_(steps, [torch.tensor(float(t))] * len(steps))
            kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
            kernel(params, grads, *moments, [], [torch.full((), float(t), device=device)] * len(params), **hyper)
        else:
            hyper |= {"decoupled_weight_decay": decoupled, "foreach": foreach, "fused": False}
            adam(params, grads, *moments, [], steps, **hyper)
        if sgd_lr:
            for p, exp_avg in zip(params, moments[0], strict=True):
                if decoupled:
                    p.mul_(1.0 - sgd_lr * group["weight_decay"])
                p.add_(exp_avg, alpha=-sgd_lr / (1.0 - beta1**t))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a checkpoint of torch's AdamW lacks what is ours
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            # With torch's capturable=True both may live on the device: they come back to the host.
            group["capturable"], group["lr"] = False, float(group["lr"])
        for p_state in self.state.values():
            if "step" in p_state:
                p_state["step"] = torch.tensor(float(p_state["step"]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which casts the moments to the parameter's dtype; here they stay float32.

        Raises:
            `ValueError`: For a state of `amsgrad=True`.
        """
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
