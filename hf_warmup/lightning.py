"""Per-layer gradient norms in PyTorch Lightning; schedules and optimizers need nothing of ours there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from .norms import GRADIENT_NORMS_FILE, LOG_PREFIX, GradientNormRecorder, GroupBy


class GradientNormCallback(Callback):
    """Record the norm of each layer's gradient before it is clipped, as [`WarmupTrainer`] does.

    To `gradient_norms.jsonl` in the trainer's `default_root_dir`, where a resumed run cuts it back to its checkpoint,
    and to Lightning's loggers as `grad_norm/<layer>` of the last recorded update. For one optimizer, with whole
    gradients (one device, or DDP); on process 0.

    Args:
        group_by (`str` or `Callable[[str], str]`, defaults to `"layer"`): As in [`GradientNormRecorder`].
        every (`int`, defaults to 1): Record updates 1, 1 + every, 1 + 2 every, ...

    Example:

    ```py
    trainer = lightning.Trainer(max_steps=100, gradient_clip_val=1.0, callbacks=[GradientNormCallback()])
    ```
    """

    def __init__(self, group_by: GroupBy = "layer", every: int = 1):
        self.recorder = GradientNormRecorder(None, group_by, every)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where the checkpoint was taken."""
        if trainer.is_global_zero:
            self.recorder.path = Path(trainer.default_root_dir) / GRADIENT_NORMS_FILE
        self.recorder.resume(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """After accumulation, reduction and fp16's unscaling, before clipping."""
        step = trainer.global_step + 1
        if trainer.is_global_zero and self.recorder.should_record(step):
            self.recorder.record(pl_module.named_parameters(), step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Into the log with Lightning's own metrics."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self.recorder.flush()
            latest = self.recorder.latest.items()
            norms = {key: value for key, value in latest if key.startswith(f"{LOG_PREFIX}/") and value is not None}
            for logger in trainer.loggers:
                logger.log_metrics(norms, step=trainer.global_step - 1)

    def on_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """What was recorded up to a checkpoint is in the file before the checkpoint is."""
        self.recorder.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rest."""
        self.recorder.flush()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """What was recorded outlives a crash."""
        self.recorder.flush()
