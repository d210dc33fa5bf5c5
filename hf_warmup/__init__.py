"""Warmup for Hugging Face Transformers: shape the learning rate, step the weights, see the gradients, plug it in."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._auto_classes import register_pre_ln_bert
from .optim import OPTIMIZERS, AdamWarmup, GIAdam, RAdam
from .schedules import get_schedule, get_scheduler, with_warmup


if TYPE_CHECKING:
    from .accelerate_utils import create_optimizer, create_scheduler, per_update, record_gradient_norms
    from .callbacks import WarmupUntilCallback
    from .configuration_bert_pre_ln import BertPreLNConfig
    from .gradient_norms import GradientNormRecorder
    from .modeling_bert_pre_ln import (
        BertPreLNForMaskedLM,
        BertPreLNForSequenceClassification,
        BertPreLNModel,
        make_pair,
    )
    from .preview import preview_schedule
    from .trainer import WarmupTrainer, WarmupTrainerMixin, create_optimizer_and_scheduler
    from .training_args import WarmupArgumentsMixin, WarmupTrainingArguments

# Loaded when they are asked for (PEP 562), so that importing the package loads neither the Trainer nor a model.
_LAZY = {
    "create_optimizer": "accelerate_utils",
    "create_scheduler": "accelerate_utils",
    "per_update": "accelerate_utils",
    "record_gradient_norms": "accelerate_utils",
    "WarmupUntilCallback": "callbacks",
    "GradientNormRecorder": "gradient_norms",
    "BertPreLNConfig": "configuration_bert_pre_ln",
    "BertPreLNForMaskedLM": "modeling_bert_pre_ln",
    "BertPreLNForSequenceClassification": "modeling_bert_pre_ln",
    "BertPreLNModel": "modeling_bert_pre_ln",
    "make_pair": "modeling_bert_pre_ln",
    "preview_schedule": "preview",
    "WarmupTrainer": "trainer",
    "WarmupTrainerMixin": "trainer",
    "create_optimizer_and_scheduler": "trainer",
    "WarmupArgumentsMixin": "training_args",
    "WarmupTrainingArguments": "training_args",
}

__version__ = "0.1.0"
__all__ = [
    "OPTIMIZERS",
    "AdamWarmup",
    "BertPreLNConfig",
    "BertPreLNForMaskedLM",
    "BertPreLNForSequenceClassification",
    "BertPreLNModel",
    "GIAdam",
    "GradientNormRecorder",
    "RAdam",
    "WarmupArgumentsMixin",
    "WarmupTrainer",
    "WarmupTrainerMixin",
    "WarmupTrainingArguments",
    "WarmupUntilCallback",
    "create_optimizer",
    "create_optimizer_and_scheduler",
    "create_scheduler",
    "get_schedule",
    "get_scheduler",
    "make_pair",
    "per_update",
    "preview_schedule",
    "record_gradient_norms",
    "with_warmup",
]


register_pre_ln_bert()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
