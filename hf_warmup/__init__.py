"""Learning-rate warmup for the Hugging Face Trainer and for Accelerate loops.

Schedules shape the learning rate, optimizers step the weights, recorders measure the gradients of each layer, and a
report shows whether the run needed its warmup. `dir(hf_warmup)` lists the public names; `help(hf_warmup.RAdam)`
describes one. Every name is loaded when it is first used, so that importing the package imports neither torch nor
transformers.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .accelerate_utils import create_optimizer as create_optimizer
    from .accelerate_utils import create_scheduler as create_scheduler
    from .accelerate_utils import per_update as per_update
    from .callbacks import StopOnSignalCallback as StopOnSignalCallback
    from .callbacks import WarmupUntilCallback as WarmupUntilCallback
    from .guard import WarmupGuard as WarmupGuard
    from .modeling_bert_pre_ln import BertPreLNConfig as BertPreLNConfig
    from .modeling_bert_pre_ln import BertPreLNForMaskedLM as BertPreLNForMaskedLM
    from .modeling_bert_pre_ln import BertPreLNForSequenceClassification as BertPreLNForSequenceClassification
    from .modeling_bert_pre_ln import BertPreLNModel as BertPreLNModel
    from .modeling_bert_pre_ln import make_pair as make_pair
    from .norms import GradientNormRecorder as GradientNormRecorder
    from .norms import record_gradient_norms as record_gradient_norms
    from .optim import OPTIMIZERS as OPTIMIZERS
    from .optim import AdamWarmup as AdamWarmup
    from .optim import GIAdam as GIAdam
    from .optim import RAdam as RAdam
    from .preview import preview_schedule as preview_schedule
    from .report.notebook import show as show
    from .schedules import WarmupLR as WarmupLR
    from .schedules import get_schedule as get_schedule
    from .schedules import get_scheduler as get_scheduler
    from .schedules import with_warmup as with_warmup
    from .trainer import WarmupSeq2SeqTrainer as WarmupSeq2SeqTrainer
    from .trainer import WarmupTrainer as WarmupTrainer
    from .trainer import WarmupTrainerMixin as WarmupTrainerMixin
    from .trainer import create_optimizer_and_scheduler as create_optimizer_and_scheduler
    from .training_args import WarmupArgumentsMixin as WarmupArgumentsMixin
    from .training_args import WarmupSeq2SeqTrainingArguments as WarmupSeq2SeqTrainingArguments
    from .training_args import WarmupTrainingArguments as WarmupTrainingArguments

__version__ = "0.1.0"

# Public name -> the module that defines it; the imports above say the same to type checkers.
_MODULE_OF = {
    "OPTIMIZERS": "optim",
    "AdamWarmup": "optim",
    "BertPreLNConfig": "modeling_bert_pre_ln",
    "BertPreLNForMaskedLM": "modeling_bert_pre_ln",
    "BertPreLNForSequenceClassification": "modeling_bert_pre_ln",
    "BertPreLNModel": "modeling_bert_pre_ln",
    "GIAdam": "optim",
    "GradientNormRecorder": "norms",
    "RAdam": "optim",
    "StopOnSignalCallback": "callbacks",
    "WarmupArgumentsMixin": "training_args",
    "WarmupGuard": "guard",
    "WarmupLR": "schedules",
    "WarmupSeq2SeqTrainer": "trainer",
    "WarmupSeq2SeqTrainingArguments": "training_args",
    "WarmupTrainer": "trainer",
    "WarmupTrainerMixin": "trainer",
    "WarmupTrainingArguments": "training_args",
    "WarmupUntilCallback": "callbacks",
    "create_optimizer": "accelerate_utils",
    "create_optimizer_and_scheduler": "trainer",
    "create_scheduler": "accelerate_utils",
    "get_schedule": "schedules",
    "get_scheduler": "schedules",
    "make_pair": "modeling_bert_pre_ln",
    "per_update": "accelerate_utils",
    "preview_schedule": "preview",
    "record_gradient_norms": "norms",
    "show": "report.notebook",
    "with_warmup": "schedules",
}
_SUBMODULES = ("optim", "preview", "report", "schedules")


def __getattr__(name: str) -> Any:
    # `help(hf_warmup)` would print every class of `__all__` with all that it inherits, 12,000 lines.
    if name == "__all__" and sys._getframe(1).f_globals.get("__name__") != "pydoc":
        return [*_MODULE_OF]
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*_MODULE_OF, *_SUBMODULES])
