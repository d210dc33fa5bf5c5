"""A loss that is right under gradient accumulation, for heads that ignore the number of items in the batch."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss


class _WatchedCount(Tensor):
    """A `num_items_in_batch` that notes whether a model computes with it."""

    was_used = False  # kept on the class because moving a tensor to another device makes a new object

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("to", "__get__"):
            return super().__torch_function__(func, types, args, kwargs)
        cls.was_used = True
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _watch_item_count(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    count = kwargs.get("num_items_in_batch")
    open_question = getattr(model, "_ignores_item_count", None) is None and not torch.compiler.is_compiling()
    if not open_question or not isinstance(count, Tensor) or not isinstance(kwargs.get("labels"), Tensor):
        return None
    _WatchedCount.was_used = False
    return args, {**kwargs, "num_items_in_batch": count.as_subclass(_WatchedCount)}


def _apply_item_count(model: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
    count = kwargs.get("num_items_in_batch")
    if isinstance(count, _WatchedCount):
        model._ignores_item_count = not _WatchedCount.was_used  # type: ignore[assignment]
    if count is None or not getattr(model, "_ignores_item_count", None):
        return None
    labels = kwargs["labels"]
    labels = kwargs.get("shift_labels", labels[..., 1:] if model._item_count_is_shifted else labels)
    share = labels.ne(-100).sum() / count
    if isinstance(outputs, dict):
        if outputs.get("loss") is not None:
            outputs["loss"] = outputs["loss"] * share.to(outputs["loss"].dtype)
        return outputs
    return (outputs[0] * share.to(outputs[0].dtype), *outputs[1:])


def _counts_shifted_labels(model: nn.Module) -> bool:
    """Return whether the `Trainer` counts `labels[..., 1:]`: since transformers 5.11, for losses of decoders."""
    causal = LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss
    is_decoder = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return causal and is_decoder and Version(transformers.__version__) >= Version("5.11")


def honor_item_count(model: nn.Module, shifted: bool | None = None) -> None:
    """Make `model` scale its loss by `num_items_in_batch` if its head accepts the count and ignores it.

    The Trainer passes the number of labels in all micro-batches of an update and expects `sum(losses) / count`. Many
    heads of transformers accept the count in `**kwargs` and return the mean over their own micro-batch instead
    (https://github.com/huggingface/transformers/issues/47688), so loss and gradient grow with the accumulation steps
    and the processes. Forward hooks observe in the first forward pass whether the head computes with the count. If it
    does not, they multiply its loss by `labels of the micro-batch / count`, which is exact for a mean over labels.

    Args:
        model (`nn.Module`): The model as passed to the Trainer, with or without a PEFT wrapper.
        shifted (`bool`, *optional*): Whether the Trainer counts `labels[..., 1:]`. By default decided from the
            installed version of transformers and the type of the model's loss.
    """
    own: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    # A sum over the batch needs no count: the micro-batches add up to the loss of the whole batch.
    is_sum = "CTC" in type(own).__name__ and getattr(getattr(own, "config", None), "ctc_loss_reduction", None) == "sum"
    if hasattr(model, "_item_count_is_shifted") or is_sum:
        return
    model._item_count_is_shifted = _counts_shifted_labels(model) if shifted is None else shifted  # type: ignore[assignment]
    model.register_forward_pre_hook(_watch_item_count, with_kwargs=True)
    model.register_forward_hook(_apply_item_count, with_kwargs=True)
