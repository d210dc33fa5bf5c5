"""Per-layer gradient norms: what to add up, the norms as one tensor, and a recorder that writes them.

The norms are L2, in gradient units, of the gradient that the optimizer is about to use, before clipping. The function
measures; [`GradientNormRecorder`] decides when, and writes. Nothing is fetched from the device until a flush.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._messages import check_name, check_number
from ._sharding import add_shards, local_part


FILE_NAME = "gradient_norms.jsonl"
KEY = "grad_norm"
GROUPINGS = ("layer", "module", "parameter")
MAX_PENDING = 1000  # updates kept on the device where nothing asks for a flush
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module"}

GroupBy = str | Callable[[str], str]


def _parts(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in _WRAPPERS]


def _first_number(parts: list[str]) -> int | None:
    return next((i for i, part in enumerate(parts) if part.isdigit()), None)


def layer_names(names: Iterable[str]) -> dict[str, str]:
    """Parameter name -> layer, by transformers' own prefixes: `embeddings`, `encoder.layer.3`, `pooler`, `classifier`.

    A block is a name up to its first number. The head's prefix of the backbone (`bert.`, `model.`, `transformer.`) is
    dropped; wrappers' prefixes (DDP's `module.`, torch.compile's `_orig_mod.`) too. What is no block is named by its
    first part, or by two inside a part that also holds blocks.

    Example:

    ```python
    >>> layer_names(["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.3.output.dense.bias", "cls.bias"])
    {'bert.embeddings.word_embeddings.weight': 'embeddings', 'bert.encoder.layer.3.output.dense.bias': 'encoder.layer.3', 'cls.bias': 'cls'}

    ```
    """  # noqa: E501
    split = {name: _parts(name) for name in names}

    def firsts(with_number: bool) -> set[str]:
        return {parts[0] for parts in split.values() if (_first_number(parts) is not None) is with_number}

    # One part that holds the blocks and the embeddings is the backbone inside a head; an encoder alone is none.
    embeddings = {parts[0] for parts in split.values() if re.search("emb|wte", ".".join(parts[1:]))}
    if len(firsts(True)) == 1 and (backbone := firsts(True) & embeddings):
        split = {name: parts[1:] if parts[0] in backbone else parts for name, parts in split.items()}

    layers = {}
    for name, parts in split.items():
        number = _first_number(parts)
        if number is not None:
            layers[name] = ".".join(parts[: number + 1])
        else:
            layers[name] = ".".join(parts[: 2 if parts[0] in firsts(True) else 1])
    return layers


def group_names(names: Iterable[str], group_by: GroupBy = "layer") -> dict[str, str]:
    """Parameter name -> group, for `"layer"`, `"module"`, `"parameter"` or a function of the name."""
    names = list(names)
    if callable(group_by):
        return {name: str(group_by(name)) for name in names}
    check_name("group_by", group_by, GROUPINGS)
    if group_by == "layer":
        return layer_names(names)
    whole = {name: ".".join(_parts(name)) for name in names}
    return whole if group_by == "parameter" else {name: key.rpartition(".")[0] or key for name, key in whole.items()}


def _tensor_norms(gradients: list[Tensor]) -> list[Tensor]:
    """L2 norm of each, in float32. `torch._foreach_norm` has no public name and saves a launch per parameter."""
    return list(torch._foreach_norm(gradients, 2.0, dtype=torch.float32))


@lru_cache(maxsize=16)
def _on_device(index: tuple[int, ...], device: torch.device) -> Tensor:
    """Sent once: a GPU has to finish its work before an ordinary copy to it returns."""
    return torch.tensor(index, device=device)


@torch.no_grad()
def group_norms(gradients: list[Tensor], index: list[int], num_groups: int) -> Tensor:
    """L2 norm of each group of `gradients`, on their device.

    Args:
        gradients (`list[Tensor]`): Of any shapes; shards of a `DTensor` are added up over its processes.
        index (`list[int]`): Group of each gradient, in `[0, num_groups)`.
        num_groups (`int`): Number of groups.

    Returns:
        `Tensor`: Shape `(num_groups,)`, float32; 0 for a group without a gradient.
    """
    if not gradients:
        return torch.zeros(num_groups)
    device = gradients[0].device
    parts, shardings = zip(*map(local_part, gradients), strict=True)
    norms = _tensor_norms(list(parts))
    if len({norm.device for norm in norms}) > 1:  # a model over several devices
        norms = [norm.to(device) for norm in norms]
    norms = torch.stack(norms)
    if not any(shardings) and num_groups == len(index) and index == list(range(num_groups)):
        return norms
    squares, total = norms.square(), torch.zeros(num_groups, device=norms.device)
    for sharding in dict.fromkeys(shardings):  # one for most models, whole or sharded
        mine = tuple(i for i, other in enumerate(shardings) if other == sharding)
        where = _on_device(tuple(index[i] for i in mine), norms.device)
        chosen = squares if len(mine) == len(index) else squares[_on_device(mine, norms.device)]
        total += add_shards(torch.zeros_like(total).index_add_(0, where, chosen), sharding)
    return total.sqrt_()


def gradient_norms(named_parameters: Iterable[tuple[str, Tensor]], group_by: GroupBy = "layer") -> dict[str, Tensor]:
    """L2 norm of the gradients of each group of parameters.

    Args:
        named_parameters (`Iterable[tuple[str, Tensor]]`): As from `model.named_parameters()`.
        group_by (`str` or `Callable[[str], str]`, defaults to `"layer"`): `"layer"`, `"module"`, `"parameter"`, or a
            function from a parameter's name to its group's.

    Returns:
        `dict[str, Tensor]`: Group -> scalar, on the gradients' device, in the model's order; groups without any
        gradient are left out. The root of the sum of squares is the total norm.

    Example:

    ```python
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> for p in model.parameters():
    ...     p.grad = torch.ones_like(p)
    >>> {layer: round(norm.item(), 4) for layer, norm in gradient_norms(model.named_parameters()).items()}
    {'0': 2.4495, '1': 1.7321}

    ```
    """
    gradients = [(name, p.grad) for name, p in named_parameters]
    names, norms = _measure(gradients, group_names([name for name, _ in gradients], group_by))
    return dict(zip(names, norms, strict=True))


def _measure(named_gradients: list[tuple[str, Tensor | None]], groups: dict[str, str]) -> tuple[list[str], Tensor]:
    present = [(groups[name], gradient) for name, gradient in named_gradients if gradient is not None]
    order = {group: i for i, group in enumerate(dict.fromkeys(group for group, _ in present))}
    index = [order[group] for group, _ in present]
    return list(order), group_norms([gradient for _, gradient in present], index, len(order))


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
        self._pending: list[tuple[int, list[str], Tensor]] = []
        self._groups: dict[str, str] = {}

    def wants(self, step: int) -> bool:
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
        groups, norms = _measure(named_gradients, self._groups)
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
        return records

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
    values = {f"{KEY}/{group}": norm if isfinite(norm) else None for group, norm in zip(groups, norms, strict=True)}
    record = {"step": step, KEY: total, **values}
    return {**record, "nonfinite": nonfinite} if nonfinite else record


def read_gradient_norms(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a run folder or of its `gradient_norms.jsonl`, in order; a half last line is left out."""
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
