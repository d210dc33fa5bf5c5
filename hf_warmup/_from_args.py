"""From training arguments to an optimizer and a schedule; the Trainer and the Accelerate loop both come here."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from .optim import OPTIMIZERS, optimizer_kwargs
from .training_args import WarmupArgumentsMixin


def optimizer_cls_and_kwargs(args: WarmupArgumentsMixin) -> tuple[type[Optimizer], dict[str, Any]]:
    """The class behind one of our `args.optim` and its keyword arguments."""
    kwargs = optimizer_kwargs(
        args.optim.value,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        optim_args=args.optim_args,
    )
    return OPTIMIZERS[args.optim.value].cls, kwargs


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The Trainer's two parameter groups: weight decay for all but biases and normalisation layers.

    The names come from the Trainer's own method, which uses nothing of the instance.
    """
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
