"""When the gradient of an update is whole: after accumulation and reduction, before clipping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ._deepspeed import before_engine_step, named_gradient_norms
from .gradient_norms import GradientNormRecorder


if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def record_gradient_norms(
    recorder: GradientNormRecorder | None, accelerator: Accelerator, model: nn.Module, step: int
) -> Iterator[None]:
    """Record update `step` around its backward passes: nothing happens before the last one of an accumulation.

    Every process takes part; give all but the first a recorder without a path.

    Args:
        recorder ([`GradientNormRecorder`], *optional*): `None` records nothing.
        accelerator (`Accelerator`): It knows about accumulation, the loss scale and DeepSpeed.
        model (`nn.Module`): Prepared or not; wrappers' prefixes do not matter.
        step (`int`): The update that the gradients are for, counted from 1.

    Example:

    ```py
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        with record_gradient_norms(recorder, accelerator, model, step=completed_steps + 1):
            accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    ```
    """
    if recorder is None or not recorder.wants(step):
        yield
        return
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)  # set by Accelerate where DeepSpeed is in use
    if wrapped is not None:
        engine = wrapped.engine

        def record() -> None:
            scale = getattr(engine.optimizer, "loss_scale", None) if engine.fp16_enabled() else None
            recorder.record_gradients(named_gradient_norms(engine.module), step, scale)

        with before_engine_step(engine, record):
            yield
        return
    yield
    if accelerator.sync_gradients:
        recorder.record(model.named_parameters(), step, _loss_scale(accelerator))


def _loss_scale(accelerator: Accelerator) -> Tensor | None:
    """`scale(1)` is the loss scale as a tensor on the device; `get_scale()` would wait for the device."""
    scaler = accelerator.scaler
    return None if scaler is None else scaler.scale(torch.ones((), device=accelerator.device))
