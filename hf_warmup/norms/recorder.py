"""When to measure the gradient norms, where to write them, and how to read them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._deepspeed import before_engine_step, named_gradient_norms
from .._validation import check_name, check_number
from .grouping import GROUPINGS, GroupBy, group_names
from .measure import measure


if TYPE_CHECKING:
    from accelerate import Accelerator

GRADIENT_NORMS_FILE = "gradient_norms.jsonl"
LOG_PREFIX = "grad_norm"
MAX_PENDING = 1000  # updates kept on the device where nothing asks for a flush


class GradientNormRecorder:
    """Records the norms of chosen updates and writes them, one JSON object a line, to `gradient_norms.jsonl`.

    A line holds `step` (the update, counted from 1), `grad_norm` (the total) and `grad_norm/<group>` for each group. A
    norm that is not finite is `null`, and `nonfinite` lists the groups.

    Args:
        path (`str` or `os.PathLike`, *optional*): The file; `None` keeps records in memory only.
        group_by (`str` or `Callable[[str], str]`, defaults to `"layer"`): As in [`gradient_norms`].
        every (`int`, defaults to 1): Record updates 1, 1 + every, 1 + 2 every, ...

    Example:

    ```python
    >>> model = torch.nn.Linear(2, 1)
    >>> for p in model.parameters():
    ...     p.grad = torch.full_like(p, 2.0)
    >>> recorder = GradientNormRecorder(None, group_by="parameter")
    >>> recorder.record(model.named_parameters(), step=1)
    >>> recorder.flush()[0]
    {'step': 1, 'grad_norm': 3.4641015756140385, 'grad_norm/weight': 2.8284270763397217, 'grad_norm/bias': 2.0}

    ```
    """

    def __init__(self, path: str | os.PathLike[str] | None, group_by: GroupBy = "layer", every: int = 1):
        if not callable(group_by):
            check_name("group_by", group_by, GROUPINGS)
        self.every = check_number("every", every, 1, integer=True)
        self.path = None if path is None else Path(path)
        self.group_by = group_by
        self.nonfinite_updates = 0
        self.latest: dict[str, Any] = {}
        self.listener: Callable[[list[dict[str, Any]]], None] = lambda rows: None  # gets what `flush` fetches
        self._pending: list[tuple[int, list[str], Tensor]] = []
        self._groups: dict[str, str] = {}

    def should_record(self, step: int) -> bool:
        """Whether update `step` (counted from 1) is recorded."""
        return (step - 1) % self.every == 0

    def record(
        self, named_parameters: Iterable[tuple[str, Tensor]], step: int, scale: Tensor | float | None = None
    ) -> None:
        """Measure the gradients of update `step`; nothing leaves the device yet.

        Args:
            named_parameters (`Iterable[tuple[str, Tensor]]`): As from `model.named_parameters()`.
            step (`int`): The update, counted from 1.
            scale (`Tensor` or `float`, *optional*): The fp16 loss scale that the gradients still carry.
        """
        self.record_gradients(((name, p.grad) for name, p in named_parameters), step, scale)

    def record_gradients(
        self, named_gradients: Iterable[tuple[str, Tensor | None]], step: int, scale: Tensor | float | None = None
    ) -> None:
        """As [`record`][GradientNormRecorder.record], from gradients; the norm of one will do for it."""
        named_gradients = list(named_gradients)
        if [name for name, _ in named_gradients] != list(self._groups):
            self._groups = group_names([name for name, _ in named_gradients], self.group_by)
        groups, norms = measure(named_gradients, self._groups)
        self._pending.append((step, groups, norms if scale is None else norms / scale))
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def flush(self) -> list[dict[str, Any]]:
        """Fetch what was recorded since the last flush (one copy), append it to the file, and return it."""
        if not self._pending:
            return []
        values = torch.cat([norms for _, _, norms in self._pending]).tolist()
        records, start = [], 0
        for step, groups, norms in self._pending:
            chunk = values[start : start + len(norms)]
            start += len(norms)
            records.append(_as_record(step, groups, chunk))
        if self.path is not None:
            _append_whole(self.path, _as_lines(records))
        self._pending.clear()
        self.nonfinite_updates += sum("nonfinite" in record for record in records)
        self.latest = records[-1]
        self.listener(records)
        return records

    def norms_on_device(self, step: int) -> Tensor | None:
        """Return the norms of update `step` if it has been recorded and not been fetched yet."""
        return self._pending[-1][2] if self._pending and self._pending[-1][0] == step else None

    def resume(self, step: int) -> None:
        """Cut the file back to update `step`: a run resumed from its checkpoint records the later ones again."""
        self._pending.clear()
        if self.path is None or not self.path.exists():
            return
        kept = [record for record in read_gradient_norms(self.path) if record["step"] <= step]
        self.nonfinite_updates = sum("nonfinite" in record for record in kept)
        replacement = self.path.with_suffix(".tmp")
        replacement.write_text(_as_lines(kept), encoding="utf-8")
        replacement.replace(self.path)


def _append_whole(path: Path, lines: str) -> None:
    """Append all of `lines` or, where the disk is full, nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            unwritten = memoryview(lines.encode())
            while unwritten:
                unwritten = unwritten[file.write(unwritten) :]
        except OSError:
            file.truncate(start)
            raise


def _as_lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _as_record(step: int, groups: list[str], norms: list[float]) -> dict[str, Any]:
    nonfinite = [group for group, norm in zip(groups, norms, strict=True) if not isfinite(norm)]
    total = None if nonfinite else sqrt(sum(norm * norm for norm in norms))
    values = {
        f"{LOG_PREFIX}/{group}": norm if isfinite(norm) else None for group, norm in zip(groups, norms, strict=True)
    }
    record = {"step": step, LOG_PREFIX: total, **values}
    return {**record, "nonfinite": nonfinite} if nonfinite else record


def read_gradient_norms(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a run folder or of its `gradient_norms.jsonl`, in order; a half last line is left out."""
    path = Path(path)
    path = path / GRADIENT_NORMS_FILE if path.is_dir() else path
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


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
    if recorder is None or not recorder.should_record(step):
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
