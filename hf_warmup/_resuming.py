"""Whether a new optimizer and schedule can go on from a checkpoint's; torch would end in a `KeyError` in training."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.optim import Adam, NAdam, Optimizer, RAdam

from .optim._adam_family import AdamFamily
from .run_settings import FILE_NAME, read_run_settings
from .schedules import innermost


_ADAMS = (Adam, NAdam, RAdam, AdamFamily)
_MOMENTS = {"exp_avg", "exp_avg_sq"}  # what each of them keeps and goes on from


def check_same_kind(checkpoint: str | Path, optimizer: Optimizer, lr_scheduler: Any) -> None:
    """Refuse a checkpoint of another kind of optimizer or schedule before it is loaded.

    Adam, AdamW, RAdam, AdamWarmup and GIAdam take each other's; so do all schedules that are functions of the step.

    Args:
        checkpoint (`str` or `Path`): A folder that the Trainer or our Accelerate loop saved; sharded optimizers' files
            are not looked into.
        optimizer (`Optimizer`): This run's, before it loads.
        lr_scheduler (`LRScheduler`): This run's, before it loads.

    Raises:
        `ValueError`: With the file, what it holds, and what this run needs.
    """
    own = innermost(optimizer)
    path, saved = _read(checkpoint, "optimizer")
    if saved is not None and "param_groups" in saved:
        states = [set(of_one) for of_one in saved["state"].values() if of_one]
        held = set().union(*states)
        needed = _options_needed(own, saved["param_groups"]) | _state_needed(own, states)
        _refuse(path, held, needed, type(own).__name__, "optimizer it was made with", "optim")
    path, saved = _read(checkpoint, "scheduler")
    if saved is not None:
        needed = _keys_needed(lr_scheduler.state_dict(), saved)
        schedule = "schedule and, if any, the WarmupUntilCallback it was made with"
        _refuse(path, set(saved), needed, "this run's schedule", schedule, "lr_scheduler_type")


def _read(checkpoint: str | Path, stem: str) -> tuple[Path | None, dict[str, Any] | None]:
    """The Trainer's file or Accelerate's and what it holds, if there is one of plain values: others the host judges."""
    for path in (Path(checkpoint) / f"{stem}.pt", Path(checkpoint) / f"{stem}.bin"):
        if path.is_file():
            try:
                return path, torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (pickle.UnpicklingError, RuntimeError):
                return path, None
    return None, None


def _options_needed(optimizer: Optimizer, saved_groups: list[dict[str, Any]]) -> set[str]:
    """Options that the optimizer has, the checkpoint has not, and loading does not fill in as for older states."""
    loaded = object.__new__(type(optimizer))
    groups = [{**group, "params": []} for group in saved_groups]
    try:
        loaded.__setstate__({"defaults": dict(optimizer.defaults), "state": {}, "param_groups": groups})
    except Exception:  # of someone's own and unlike torch's: it judges for itself when it loads
        return set()
    options = (
        optimizer.defaults.keys() & optimizer.param_groups[0].keys()
    )  # torch adds to the defaults what is no one's
    return {key for group in loaded.param_groups for key in options - group.keys()}


def _state_needed(optimizer: Optimizer, states: list[set[str]]) -> set[str]:
    return _MOMENTS - set.intersection(*states) if states and isinstance(optimizer, _ADAMS) else set()


def _keys_needed(own: dict[str, Any], saved: dict[str, Any]) -> set[str]:
    """Public keys of a schedule's state that the saved one has not, those of the schedule behind a warmup included."""
    needed = {key for key in own.keys() - saved.keys() if not key.startswith("_")}
    if needed or "lr_scheduler" not in own:
        return needed
    return _keys_needed(own["lr_scheduler"], saved["lr_scheduler"])


def _refuse(path: Path, held: set[str], needed: set[str], name: str, those: str, argument: str) -> None:
    if needed:
        value = read_run_settings(path.parent).get("training_args", {}).get(argument)
        known = f" ({argument}={value!r} in its {FILE_NAME})" if value else ""
        raise ValueError(
            f"{path} holds {_listed(held) or 'no state'}; {name} needs {_listed(needed)}: resume with "
            f"the {those}{known}, or start anew."
        )


def _listed(keys: set[str], most: int = 4) -> str:
    public = sorted(key for key in keys if not key.startswith("_"))
    return ", ".join(public[:most]) + (", ..." if len(public) > most else "")
