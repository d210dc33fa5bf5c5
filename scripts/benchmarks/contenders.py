"""What the benchmarks compare: the parts of hf_warmup, those of torch, and other libraries if they are installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_warmup import AdamWarmup, GIAdam, GradientNormRecorder, RAdam


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Parameters = list[nn.Parameter]


def is_available(name: str, call: Callable[[Any], Any], argument: Any) -> bool:
    """Return whether a contender runs, and print why not otherwise."""
    try:
        call(argument)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision for another build of torch
        print(f"{name} is left out: {error}")
        return False
    return True


def optimi_radam(parameters: Parameters) -> torch.optim.Optimizer:
    import optimi

    return optimi.RAdam(parameters, lr=1e-3)


def pytorch_optimizer_radam(parameters: Parameters) -> torch.optim.Optimizer:
    import pytorch_optimizer

    return pytorch_optimizer.RAdam(parameters)


def timm_nadamw(parameters: Parameters) -> torch.optim.Optimizer:
    import timm.optim

    return timm.optim.NAdamW(parameters)


def schedulefree_radam(parameters: Parameters) -> torch.optim.Optimizer:
    import schedulefree

    optimizer = schedulefree.RAdamScheduleFree(parameters)
    optimizer.train()
    return optimizer


REFERENCE = "torch AdamW fused"
OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    REFERENCE: partial(torch.optim.AdamW, fused=True),
    "RAdam": RAdam,
    "AdamWarmup": partial(AdamWarmup, warmup_steps=100),
    "GIAdam": GIAdam,
    "RAdam foreach": partial(RAdam, foreach=True),
    "RAdam loop": partial(RAdam, foreach=False),
    "torch AdamW foreach": partial(torch.optim.AdamW, foreach=True),
    "torch RAdam foreach": partial(torch.optim.RAdam, foreach=True),
    "torch RAdam loop": partial(torch.optim.RAdam, foreach=False),
    "torch-optimi RAdam": optimi_radam,
    "pytorch_optimizer RAdam": pytorch_optimizer_radam,
    "timm NAdamW": timm_nadamw,
    "schedulefree RAdam": schedulefree_radam,
}
if DEVICE.type == "cuda":
    OPTIMIZERS["torch RAdam capturable"] = partial(torch.optim.RAdam, foreach=True, capturable=True)


def record_by(group_by: str) -> Callable[[nn.Module], Any]:
    """Return a function that records and fetches gradient norms, as a Trainer that logs every update does."""
    recorder = GradientNormRecorder(None, group_by)

    def measure(model: nn.Module) -> None:
        recorder.record(model.named_parameters(), step=1)
        recorder.flush()

    return measure


def item_each(model: nn.Module) -> list[float]:
    """Return one `.norm().item()` per parameter, the usual way in own code."""
    return [p.grad.norm().item() for p in model.parameters() if p.grad is not None]


def lightning(model: nn.Module) -> Any:
    """Return Lightning's norms, fetched one by one as its logger does."""
    from pytorch_lightning.utilities.grads import grad_norm

    return {name: norm.item() for name, norm in grad_norm(model, norm_type=2).items()}


GRADIENT_NORMS: dict[str, Callable[[nn.Module], Any]] = {
    "by layer": record_by("layer"),
    "by module": record_by("module"),
    "by parameter": record_by("parameter"),
    ".norm().item() each": item_each,
    "Lightning's grad_norm": lightning,
}
