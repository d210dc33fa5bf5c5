"""A PyTorch Lightning callback that records the gradient norms of each layer.

Schedules and optimizers of this package work in Lightning as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from .norms import GRADIENT_NORMS_FILE, LOG_PREFIX, GradientNormRecorder, GroupBy


class GradientNormCallback(Callback):
    """Record the gradient norm of each layer before clipping, as [`WarmupTrainer`] does.

    The rows of `gradient_norms.jsonl`, in the trainer's `default_root_dir`, also hold the loss and the effective
    learning rate. A resumed run continues the file at its checkpoint. Lightning's loggers get `grad_norm/<layer>` of
    the last recorded update.

    The callback supports one optimizer and complete gradients (one device, or DDP). It records on process 0.

    Args:
        group_by (`str` or `Callable[[str], str]`, defaults to `"layer"`): As in [`GradientNormRecorder`].
        every (`int`, defaults to 1): Record updates 1, 1 + every, 1 + 2 every, ...

    Example:

    ```py
    trainer = lightning.Trainer(max_steps=100, gradient_clip_val=1.0, callbacks=[GradientNormCallback()])
    ```
    """

    def __init__(self, group_by: GroupBy = "layer", every: int = 1):
        self.recorder = GradientNormRecorder(None, group_by, every, share_with_clip=False)  # Lightning clips by itself
        self._optimizer: Optimizer | None = None
        self._scheduled_lrs: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the file of a resumed run at its checkpoint."""
        if trainer.is_global_zero:
            self.recorder.path = Path(trainer.default_root_dir) / GRADIENT_NORMS_FILE
        self.recorder.resume(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure after accumulation, reduction and the unscaling of fp16, and before clipping."""
        step = trainer.global_step + 1
        if trainer.is_global_zero and self.recorder.should_record(step):
            self.recorder.record(pl_module.named_parameters(), step)
            self._optimizer, self._scheduled_lrs = optimizer, [group["lr"] for group in optimizer.param_groups]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Add the loss and the learning rates to the row, and log the norms with Lightning's own metrics."""
        if self._optimizer is not None:  # the schedule has moved on, so `group["lr"]` is that of the next update
            groups = zip(self._optimizer.param_groups, self._scheduled_lrs, strict=True)
            rates = [group.get("scheduled_lr", lr) for group, lr in groups if group["params"]]
            self.recorder.log(learning_rate=rates, **({"loss": outputs["loss"]} if outputs else {}))
            self._optimizer = None
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.recorder.flush()
            latest = self.recorder.latest.items()
            norms = {key: value for key, value in latest if key.startswith(f"{LOG_PREFIX}/") and value is not None}
            for logger in trainer.loggers:
                logger.log_metrics(norms, step=trainer.global_step - 1)

    def on_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write what was recorded before the checkpoint is written."""
        self.recorder.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what has not been written yet."""
        self.recorder.flush()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Write what was recorded before the error."""
        self.recorder.flush()
