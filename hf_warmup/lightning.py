"""A PyTorch Lightning callback that records the gradient norms of each layer, and can act on them.

Schedules and optimizers of this package work in Lightning as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from .guard import WarmupGuard
from .norms import GRADIENT_NORMS_FILE, LOG_PREFIX, GradientNormRecorder, GroupBy


class GradientNormCallback(Callback):
    """Record the gradient norm of each layer before clipping, as [`WarmupTrainer`] does.

    The rows of `gradient_norms.jsonl`, in the trainer's `default_root_dir`, also hold the loss and the effective
    learning rate. A resumed run continues the file at its checkpoint. Lightning's loggers get `grad_norm/<layer>` of
    the last recorded update.

    The callback supports one optimizer and complete gradients (one device, or DDP). Process 0 writes the file.

    Args:
        group_by (`str` or `Callable[[str], str]`, defaults to `"layer"`): As in [`GradientNormRecorder`].
        every (`int`, defaults to 1): Record updates 1, 1 + every, 1 + 2 every, ...
        guard (`str`, defaults to `"off"`): `"warn"`, `"stop"` or `"rewind"`: what a [`WarmupGuard`] does that judges
            the recorded norms. A rewind needs one scheduler with `"interval": "step"`.

    Raises:
        `ValueError`: If `guard` is unknown, or when training starts, if the run cannot be rewound.

    Example:

    ```py
    trainer = lightning.Trainer(max_steps=100, gradient_clip_val=1.0, callbacks=[GradientNormCallback()])
    ```
    """

    def __init__(self, group_by: GroupBy = "layer", every: int = 1, guard: str = "off"):
        self.recorder = GradientNormRecorder(None, group_by, every, share_with_clip=False)  # Lightning clips by itself
        self.guard = None if guard == "off" else WarmupGuard(guard, self.recorder)
        self._optimizer: Optimizer | None = None
        self._scheduled_lrs: list[float] = []
        self._judged = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Multiply the schedule by the warmup of a rewind, before a checkpoint's state is loaded into it."""
        if self.guard is not None and self.guard.action == "rewind":
            configs = trainer.lr_scheduler_configs
            if len(configs) != 1 or configs[0].interval != "step":
                raise ValueError("guard='rewind' needs one scheduler with \"interval\": \"step\". Use guard='stop'.")
            configs[0].scheduler = self.guard.wrap_scheduler(configs[0].scheduler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the file of a resumed run at its checkpoint, and take the guard's first snapshot."""
        if trainer.is_global_zero:
            self.recorder.path = Path(trainer.default_root_dir) / GRADIENT_NORMS_FILE
        self.recorder.resume(trainer.global_step)
        self._judged = trainer.global_step
        if self.guard is not None:
            scheduler = next((config.scheduler for config in trainer.lr_scheduler_configs), None)
            self.guard.start(pl_module, trainer.optimizers[0], scheduler, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure after accumulation, reduction and the unscaling of fp16, and before clipping."""
        step = trainer.global_step + 1
        if self.recorder.should_record(step) and (trainer.is_global_zero or self.guard is not None):
            self.recorder.record(pl_module.named_parameters(), step)
            self._optimizer, self._scheduled_lrs = optimizer, [group["lr"] for group in optimizer.param_groups]
        if self.guard is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
            self.guard.before_step(step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Add the loss and the learning rates to the row, and log the norms with Lightning's own metrics."""
        if self._optimizer is not None:  # the schedule has moved on, so `group["lr"]` is that of the next update
            groups = zip(self._optimizer.param_groups, self._scheduled_lrs, strict=True)
            rates = [group.get("scheduled_lr", lr) for group, lr in groups if group["params"]]
            self.recorder.log(learning_rate=rates, **({"loss": outputs["loss"]} if outputs else {}))
            self._optimizer = None
        if self.guard is not None and trainer.global_step > self._judged:  # not between accumulated batches
            self._judged = trainer.global_step
            trainer.should_stop |= self.guard.after_step(trainer.global_step)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.recorder.flush()
            latest = self.recorder.latest.items()
            norms = {key: value for key, value in latest if key.startswith(f"{LOG_PREFIX}/") and value is not None}
            for logger in trainer.loggers:
                logger.log_metrics(norms, step=trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the guard's state, which Lightning saves in its checkpoints."""
        return {} if self.guard is None else self.guard.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the guard's state of a checkpoint."""
        if self.guard is not None and state_dict:
            self.guard.load_state_dict(state_dict)

    def on_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write what was recorded before the checkpoint is written."""
        self.recorder.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what has not been written yet."""
        self.recorder.flush()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Write what was recorded before the error."""
        self.recorder.flush()
