"""A recorder: when to measure the gradient norms, and what to write of them."""

from __future__ import annotations

import errno
import logging
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._deepspeed import before_engine_step, named_gradient_norms
from .._validation import check_name, check_number
from ..report.run import (
    GRADIENT_NORMS_FILE,
    GROWING_STACKS,
    LOG_PREFIX,
    UPDATE_PREFIXES,
    append_rows,
    describe_gaps,
    find_gaps,
    iter_rows,
    truncate_rows,
)
from .grouping import GROUPINGS, GroupBy, group_names, growing_stacks
from .measure import ClipNorms, group_norms, measure


if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

MAX_PENDING = 1000  # updates kept on the device
MAX_SECONDS = 30.0  # before the next update writes what was recorded
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class _Row:
    """What was recorded of one update and has not been written yet."""

    step: int
    groups: list[str] | None = None
    norms: Tensor = field(default_factory=lambda: torch.zeros(0))
    values: dict[str, Any] = field(default_factory=dict)


class GradientNormRecorder:
    """A recorder of gradient norms that writes one JSON object per update to `gradient_norms.jsonl`.

    A row holds `step` (the update, counted from 1), `grad_norm` (the total) and `grad_norm/<group>` for each group, and
    what [`log`][hf_warmup.GradientNormRecorder.log] adds. A norm that is not finite is `null`, and `nonfinite` lists its
    group. Norms stay on the device until [`flush`][hf_warmup.GradientNormRecorder.flush]. Rows are written at every
    flush, and at the latest by the first recorded update after 30 seconds.

    If the file cannot be written, the recorder logs a warning and goes on without it. A full disk raises `OSError`.

    Args:
        path (`str` or `os.PathLike`, *optional*): The file; `None` writes nothing.
        group_by (`str` or `Callable[[str], str]`, defaults to `"layer"`): As in [`gradient_norms`].
        every (`int`, defaults to 1): Record updates 1, 1 + every, 1 + 2 every, ...
        share_with_clip (`bool`, defaults to `True`): Measure as `torch.nn.utils.clip_grad_norm_` does, so that
            [`clip_`][hf_warmup.GradientNormRecorder.clip_] can use the norms. With `False`, norms of float32 gradients
            on the CPU are more accurate (relative error 1e-5 instead of up to 1e-3 for the largest tensors) and
            take half the time.

    Example:

    ```python
    >>> model = torch.nn.Linear(2, 1)
    >>> for p in model.parameters():
    ...     p.grad = torch.full_like(p, 2.0)
    >>> recorder = GradientNormRecorder(None, group_by="parameter")
    >>> recorder.record(model.named_parameters(), step=1)
    >>> recorder.log(loss=torch.tensor(0.5), learning_rate=1e-3)
    >>> recorder.flush()[0]
    {'step': 1, 'grad_norm': 3.4641015756140385, 'grad_norm/weight': 2.8284270763397217, 'grad_norm/bias': 2.0, 'loss': 0.5, 'learning_rate': 0.001}

    ```
    """  # noqa: E501

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        group_by: GroupBy = "layer",
        every: int = 1,
        *,
        share_with_clip: bool = True,
    ):
        if not callable(group_by):
            check_name("group_by", group_by, GROUPINGS)
        self.every = check_number("every", every, 1, integer=True)
        self.path = None if path is None else Path(path)
        self.group_by = group_by
        self.share_with_clip = share_with_clip
        self.nonfinite_updates = 0
        self.latest: dict[str, Any] = {}
        self.listener: Callable[[list[dict[str, Any]]], None] = lambda rows: None  # gets the measured rows
        self._pending: list[_Row] = []
        self._groups: dict[str, str] = {}
        self._for_clip: ClipNorms | None = None
        self._written_at = time.monotonic()

    def should_record(self, step: int) -> bool:
        """Return whether update `step`, counted from 1, is recorded."""
        return (step - 1) % self.every == 0

    def record(
        self, named_parameters: Iterable[tuple[str, Tensor]], step: int, scale: Tensor | float | None = None
    ) -> None:
        """Measure the gradients of update `step`. If it has been measured before, the new norms replace the old ones.

        Args:
            named_parameters (`Iterable[tuple[str, Tensor]]`): As from `model.named_parameters()`.
            step (`int`): The update, counted from 1.
            scale (`Tensor` or `float`, *optional*): The loss scale (fp16) by which the gradients are still multiplied.

        Raises:
            `ValueError`: If `step` is not a whole number from 1 on.
        """
        named_parameters = list(named_parameters)
        self.record_gradients(((name, p.grad) for name, p in named_parameters), step, scale, dict(named_parameters))

    def record_gradients(
        self,
        named_gradients: Iterable[tuple[str, Tensor | None]],
        step: int,
        scale: Tensor | float | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Measure gradients, as [`record`][hf_warmup.GradientNormRecorder.record] does.

        The norm of a gradient may be given in its place. The row of update 1 notes the stacks whose blocks in
        `parameters` have different shapes.
        """
        step = check_number("step", step, 1, integer=True)
        if self._pending and self._pending[-1].step == step:  # a loop that accumulates gradients by hand
            self._pending.pop()
        elif len(self._pending) >= MAX_PENDING or time.monotonic() - self._written_at >= MAX_SECONDS:
            self.flush()
        named_gradients = list(named_gradients)
        if [name for name, _ in named_gradients] != list(self._groups):
            self._groups = group_names([name for name, _ in named_gradients], self.group_by)
        groups, norms, self._for_clip = measure(named_gradients, self._groups, for_clip=self.share_with_clip)
        growing = growing_stacks({name: p.shape for name, p in (parameters or {}).items()}) if step == 1 else []
        values = {GROWING_STACKS: growing} if growing else {}
        self._pending.append(_Row(step, groups, norms if scale is None else norms / scale, values))

    def log(self, **values: Any) -> None:
        """Add values, such as `loss` and `learning_rate`, to the row of the last recorded update.

        A value is a number, a scalar tensor (which stays on the device), or a list with one number per parameter group.
        A value that the row already has is kept, so this method may be called after updates that are not recorded.

        Example:

        ```py
        recorder.log(loss=loss, learning_rate=effective_learning_rates(optimizer))
        ```
        """
        if not self._pending and self.latest:  # written by a flush since: rows of the same step are read as one
            values = {key: value for key, value in values.items() if key not in self.latest}
            self._pending += [_Row(self.latest["step"])] if values else []
        if self._pending:
            self._pending[-1].values = values | self._pending[-1].values

    def record_updates(
        self, named_parameters: Iterable[tuple[str, Tensor]], norms: Mapping[Tensor, tuple[Tensor, Tensor]]
    ) -> None:
        """Add the norm of each group's update, and its ratio to the norm of the weights, to the row of this update.

        Args:
            named_parameters (`Iterable[tuple[str, Tensor]]`): As from `model.named_parameters()`.
            norms (`Mapping[Tensor, tuple[Tensor, Tensor]]`): As from
                [`update_norms`][hf_warmup.optim.update_norms], between `optimizer.step()` and
                `optimizer.zero_grad()`.

        Example:

        ```py
        optimizer.step()
        recorder.record_updates(model.named_parameters(), update_norms(optimizer))
        ```
        """
        present = [(self._groups[name], p) for name, p in named_parameters if name in self._groups and p in norms]
        groups = list(dict.fromkeys(group for group, _ in present))
        index = [groups.index(group) for group, _ in present]
        updates, weights = (
            group_norms([p for _, p in present], index, len(groups), [norms[p][i] for _, p in present]) for i in (0, 1)
        )
        for prefix, values in zip(UPDATE_PREFIXES, (updates, updates / weights), strict=True):
            self.log(**{prefix + group: value for group, value in zip(groups, values, strict=True)})

    def clip_(self, model: nn.Module, max_norm: float, accelerator: Accelerator | None = None) -> Tensor | None:
        """Clip the gradients of `model` to a total norm of `max_norm`, and return the total norm before.

        The result is the same, bit for bit, as that of `accelerator.clip_grad_norm_`, or without an accelerator of
        `torch.nn.utils.clip_grad_norm_`. If the gradients have just been recorded, their norms are not computed again.

        Args:
            model (`nn.Module`): The model, prepared or not.
            max_norm (`float`): The largest total norm, above 0.
            accelerator (`Accelerator`, *optional*): The accelerator of the loop.

        Example:

        ```py
        if accelerator.sync_gradients:
            recorder.clip_(model, 1.0, accelerator)
        ```
        """
        parameters = list(model.parameters())
        total = self.clip_recorded_(parameters, max_norm, accelerator)
        if total is not None:
            return total
        clip = torch.nn.utils.clip_grad_norm_ if accelerator is None else accelerator.clip_grad_norm_
        return clip(parameters, max_norm)

    def clip_recorded_(
        self, parameters: Iterable[Tensor], max_norm: float, accelerator: Accelerator | None = None
    ) -> Tensor | None:
        """Clip with the recorded norms, or return `None` and do nothing if they cannot be used.

        They can be used once, if no gradient has changed since they were recorded, for complete float32 gradients on
        one device. Engines that shard, and fp16's gradient scaler, have a clip of their own.
        """
        for_clip, self._for_clip = self._for_clip, None
        if for_clip is None or not _clips_plainly(accelerator):
            return None
        parameters = list(parameters)
        total = for_clip.total_of([p.grad for p in parameters if p.grad is not None])
        # torch multiplies by a coefficient of 1 too, because it avoids to wait for a GPU. A CPU is not waited for.
        if total is not None and not (total.device.type == "cpu" and max_norm / (total + 1e-6) >= 1.0):
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
        return total

    def flush(self) -> list[dict[str, Any]]:
        """Fetch what was recorded since the last flush (in one copy), append it to the file, and return the rows."""
        self._written_at = time.monotonic()
        rows = _fetch(self._pending)
        self.write(rows)
        self._pending.clear()  # only now: rows that a full disk refused are written by the next flush
        self.nonfinite_updates += sum("nonfinite" in row for row in rows)
        for row in rows:
            self.latest = self.latest | row if self.latest.get("step") == row["step"] else row
        if measured := [row for row in rows if LOG_PREFIX in row]:
            self.listener(measured)
        return rows

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the file, such as the note of a rewind."""
        if rows and self.path is not None:
            with self._continue_without_file():
                append_rows(self.path, rows)

    def norms_on_device(self, step: int) -> Tensor | None:
        """Return the norms of update `step` if it has been recorded and not been fetched yet."""
        return self._pending[-1].norms if self._pending and self._pending[-1].step == step else None

    def resume(self, step: int) -> None:
        """Remove the rows after update `step` from the file: a run that is resumed there records them again.

        Logs a warning if the file lacks updates before.
        """
        self._pending.clear()
        self.latest, self.nonfinite_updates, self._for_clip = {}, 0, None
        if self.path is None:
            return
        with self._continue_without_file():
            truncate_rows(self.path, step)
            recorded = array("q")
            for row in iter_rows(self.path) if self.path.exists() else ():
                self.nonfinite_updates += "nonfinite" in row
                recorded.extend([row["step"]] if LOG_PREFIX in row else [])
            if step and (gaps := find_gaps(recorded, self.every, last=step)):
                logger.warning(f"{self.path} lacks {describe_gaps(gaps)}, which the checkpoint has made.")

    @contextmanager
    def _continue_without_file(self) -> Iterator[None]:
        """Log a warning and write no more if the file cannot be written. Raise if the disk is full."""
        try:
            yield
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise
            logger.warning(
                f"The gradient norms cannot be written to {self.path} ({error.strerror}). Training continues without "
                "the recording. Choose an output folder that can be written to keep it."
            )
            self.path = None


def _clips_plainly(accelerator: Accelerator | None) -> bool:
    """Return whether `accelerator.clip_grad_norm_` does what `torch.nn.utils.clip_grad_norm_` does."""
    if accelerator is None:
        return True
    kind = accelerator.distributed_type.value
    return accelerator.scaler is None and (kind == "NO" or kind.startswith("MULTI_"))


def _fetch(pending: list[_Row]) -> list[dict[str, Any]]:
    """Return rows of Python numbers, after a single copy from the device."""
    if not pending:
        return []
    tensors = {
        (i, key): value.detach().float().mean().reshape(1)
        for i, row in enumerate(pending)
        for key, value in row.values.items()
        if isinstance(value, Tensor)
    }
    norms = [row.norms for row in pending]
    device = max(norms, key=len).device
    fetched = torch.cat([tensor.to(device) for tensor in (*norms, *tensors.values())]).tolist()
    values = iter(fetched)
    rows = [_as_row(row, [next(values) for _ in range(len(row.norms))]) for row in pending]
    for (i, key), value in zip(tensors, values, strict=True):
        rows[i][key] = _finite(value)
    return rows


def _as_row(row: _Row, norms: list[float]) -> dict[str, Any]:
    values = {key: value if key == GROWING_STACKS else _number(value) for key, value in row.values.items()}
    if row.groups is None:
        return {"step": row.step, **values}
    nonfinite = [group for group, norm in zip(row.groups, norms, strict=True) if not isfinite(norm)]
    total = None if nonfinite else sqrt(sum(norm * norm for norm in norms))
    by_group = {f"{LOG_PREFIX}/{group}": _finite(norm) for group, norm in zip(row.groups, norms, strict=True)}
    record = {"step": row.step, LOG_PREFIX: total, **by_group, **values}
    return {**record, "nonfinite": nonfinite} if nonfinite else record


def _number(value: Any) -> Any:
    """Return a number, or a list with one number per parameter group unless all of them are equal."""
    if isinstance(value, Tensor):
        return None  # replaced when it is fetched
    if isinstance(value, (list, tuple)):
        numbers = [_finite(float(each)) for each in value]
        return numbers[0] if len(set(numbers)) == 1 else numbers
    return _finite(float(value))


def _finite(value: float) -> float | None:
    """Return `value`, or `None` for a number that JSON does not have."""
    return value if isfinite(value) else None


def read_gradient_norms(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a run folder, or of its `gradient_norms.jsonl`, in order.

    Lines that hold no row are skipped, and their number is logged as a warning.
    """
    path = Path(path)
    rows: list[dict[str, Any]] = []
    for row in iter_rows(path / GRADIENT_NORMS_FILE if path.is_dir() else path):
        if rows and rows[-1]["step"] == row["step"]:
            rows[-1] |= row
        else:
            rows.append(row)
    return rows


@contextmanager
def record_gradient_norms(
    recorder: GradientNormRecorder | None, accelerator: Accelerator, model: nn.Module, step: int
) -> Iterator[None]:
    """Record update `step` around its backward passes. Only the last one of an accumulation is measured.

    Call it on every process, with a recorder without a path on all but the first. A loop that accumulates gradients
    without `accelerator.accumulate` measures after each backward pass, and the last one counts.

    Args:
        recorder ([`GradientNormRecorder`], *optional*): `None` records nothing.
        accelerator (`Accelerator`): Tells about accumulation, the loss scale and DeepSpeed.
        model (`nn.Module`): The model, prepared or not.
        step (`int`): The update that the gradients are for, counted from 1.

    Example:

    ```py
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        with record_gradient_norms(recorder, accelerator, model, step=completed_steps + 1):
            accelerator.backward(loss)
        if accelerator.sync_gradients:
            recorder.clip_(model, 1.0, accelerator)  # as accelerator.clip_grad_norm_, with the recorded norms
        optimizer.step()
        recorder.log(loss=loss, learning_rate=effective_learning_rates(optimizer))
        scheduler.step()
        optimizer.zero_grad()
    ```
    """
    if recorder is None or not recorder.should_record(step):
        yield
        return
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)  # set by Accelerate if DeepSpeed is used
    if wrapped is not None:
        engine = wrapped.engine

        def record() -> None:
            scale = getattr(engine.optimizer, "loss_scale", None) if engine.fp16_enabled() else None
            parameters = dict(engine.module.named_parameters())
            recorder.record_gradients(named_gradient_norms(engine.module), step, scale, parameters)

        with before_engine_step(engine, record):
            yield
        return
    yield
    if accelerator.sync_gradients:
        recorder.record(model.named_parameters(), step, _loss_scale(accelerator))


def _loss_scale(accelerator: Accelerator) -> Tensor | None:
    """Return the loss scale as a tensor on the device. `scaler.get_scale()` would wait for the device."""
    scaler = accelerator.scaler
    return None if scaler is None else scaler.scale(torch.ones((), device=accelerator.device))
