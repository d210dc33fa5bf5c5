"""Checkpoints: which one is complete, and whether a run can resume from it."""

from __future__ import annotations

import errno
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.optim import Adam, NAdam, Optimizer, RAdam
from transformers.utils import logging

from .optim.adam_family import AdamFamily
from .report.run import SETTINGS_FILE, read_run_settings
from .schedules import unwrap_optimizer


logger = logging.get_logger(__name__)


TRAINER_STATE_FILE = "trainer_state.json"  # written last, by the Trainer and by our Accelerate loop
WEIGHTS = ("*.safetensors", "*model*.bin", "pytorch_model*", "global_step*")  # the last two: FSDP, DeepSpeed
CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
# State of the parameter's own shape in torch's optimizers; factored, projected and quantised states have others.
_LIKE_THE_PARAMETER = {"acc_delta", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum"}


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N` of `output_dir`, whole or not, by N."""
    folders = [
        path
        for path in Path(output_dir).glob("checkpoint-*")
        if path.is_dir() and CHECKPOINT_PATTERN.fullmatch(path.name)
    ]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def find_corruption(checkpoint: str | Path, model: nn.Module | None = None, num_processes: int = 1) -> str | None:
    """What is wrong with a checkpoint, by the file's name; `None` for a whole one.

    Args:
        checkpoint (`str` or `Path`): A folder that the Trainer or our Accelerate loop saved.
        model (`nn.Module`, *optional*): Weights and optimizer state have to be of its shapes.
        num_processes (`int`, defaults to 1): Where a Trainer saved the random numbers of several processes, those of
            so many are expected.

    Returns:
        `str`, *optional*: Half a sentence, such as `"optimizer.pt is cut off"`.
    """
    folder = Path(checkpoint)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    for path in files:
        if problem := _file_damage(path):
            return f"{path.relative_to(folder)} {problem}"
    if not (folder / TRAINER_STATE_FILE).is_file():
        return f"{TRAINER_STATE_FILE} is missing: the save did not finish"
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return "the weights are missing"
    if missing := _missing(folder):
        return f"{missing} is missing"
    # Each process of a Trainer writes its own, and may be killed before it has.
    random_states = len(list(folder.glob("rng_state_*.pth")))
    if 0 < random_states < num_processes:
        return f"rng_state_{random_states}.pth is missing: {num_processes} processes need as many"
    return None if model is None else _shape_mismatch(folder, model)


def _missing(folder: Path) -> str | None:
    """A file that the others of a checkpoint go with; sharded ones keep theirs in folders."""
    families = [("optimizer.pt", "scheduler.pt")]  # the Trainer's, and our loop's
    if not (folder / "optimizer_0").exists() and not (folder / "pytorch_model").exists():
        families.append(("optimizer.bin", "scheduler.bin", "random_states_0.pkl"))
    for family in families:
        absent = [name for name in family if not (folder / name).exists()]
        if absent and len(absent) < len(family):
            return absent[0]
    return None


def _file_damage(path: Path) -> str | None:
    if path.stat().st_size == 0 and path.suffix:
        return "is empty"
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                file.keys()
        elif path.suffix in (".pt", ".pth", ".bin", ".pkl"):
            with zipfile.ZipFile(path):  # its directory stands at the end
                pass
    except (ValueError, SafetensorError, zipfile.BadZipFile):
        return "is cut off or is not what its name says"
    return None


def _shape_mismatch(folder: Path, model: nn.Module) -> str | None:
    """The first file whose tensors are not those of `model`; sharded and adapter checkpoints are not looked into."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = folder / "model.safetensors"
    if weights.is_file():
        with safe_open(weights, framework="pt") as file:
            saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
        # Some models of transformers save under other names than they train under: one in common is enough.
        common = saved.keys() & expected.keys()
        odd = next((name for name in sorted(common) if saved[name] != expected[name]), None)
        if odd or (saved and not common):
            what = f"{odd} is {saved[odd]}, not {expected[odd]}" if odd else "no tensor has a name that is known"
            return f"{weights.name} is of another model ({what})"
    shapes = [list(p.shape) for p in model.parameters()]
    for path in (folder / "optimizer.pt", folder / "optimizer.bin"):
        if weights.is_file() and path.is_file() and (problem := _foreign_optimizer(path, shapes)):
            return f"{path.name} {problem}"
    return None


def _foreign_optimizer(path: Path, shapes: list[list[int]]) -> str | None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state"]
    except Exception:
        return "is not the state of an optimizer"
    for of_one in state.values():
        for key in sorted(of_one.keys() & _LIKE_THE_PARAMETER):
            value = of_one[key]
            if isinstance(value, torch.Tensor) and list(value.shape) not in shapes:
                return f"is of another model (no parameter has the shape {list(value.shape)} of its {key})"
    return None


def resolve_checkpoint(
    resume_from_checkpoint: str | bool | Path,
    output_dir: str | Path,
    model: nn.Module | None = None,
    num_processes: int = 1,
) -> Path | None:
    """The whole checkpoint that is meant.

    Args:
        resume_from_checkpoint (`str`, `bool` or `Path`): A folder; `True` or `"true"` for the last whole one of
            `output_dir`; `"auto"` for the same if there is one, and otherwise `None`: a first start and a restart are
            one command.
        output_dir (`str` or `Path`): Where the run saves.
        model, num_processes: As in [`find_corruption`].

    Raises:
        `ValueError`: If it is damaged, with the file's name and the last whole one; or if there is none.
    """
    newest_first = checkpoints(output_dir)[::-1]
    asked = str(resume_from_checkpoint)
    if asked.lower() not in ("true", "auto"):
        return _resolve_explicit_path(Path(asked), newest_first, model, num_processes)
    problems = []
    for path in newest_first:
        problem = find_corruption(path, model, num_processes)
        if problem is None:
            for line in problems:
                logger.warning(f"Passing over a checkpoint that is not whole: {line}.")
            return path
        problems.append(f"{path.name}: {problem}")
    # A run killed in its first save begins anew; more than that it cannot have damaged itself.
    if asked.lower() == "auto" and len(problems) <= 1 and not any("of another model" in line for line in problems):
        for line in problems:
            logger.warning(f"Beginning anew, the only checkpoint is not whole: {line}.")
        return None
    raise ValueError(
        f"resume_from_checkpoint={asked!r}: {output_dir} has no checkpoint to go on from"
        f"{' (' + '; '.join(problems) + ')' if problems else ''}."
    )


def _resolve_explicit_path(chosen: Path, newest_first: list[Path], model: nn.Module | None, num_processes: int) -> Path:
    if not chosen.is_dir():
        raise ValueError(f"resume_from_checkpoint={str(chosen)!r}: there is no such folder.")
    inside = checkpoints(chosen)[::-1]
    problem = "this is a run's folder" if inside else find_corruption(chosen, model, num_processes)
    if problem is None:
        return chosen
    others = inside or [path for path in newest_first if path.resolve() != chosen.resolve()]
    whole = next((path for path in others if find_corruption(path, model, num_processes) is None), None)
    offer = f"the last whole checkpoint is {whole}" if whole else "there is no other whole one"
    raise ValueError(f"resume_from_checkpoint={str(chosen)!r}: {problem}; {offer}.")


def check_not_beyond(checkpoint: str | Path, max_steps: int) -> None:
    """Refuse a checkpoint that has made more updates than the run is to make: it is another run's.

    Raises:
        `ValueError`: With both numbers.
    """
    step = json.loads((Path(checkpoint) / TRAINER_STATE_FILE).read_text(encoding="utf-8")).get("global_step", 0)
    if 0 < max_steps < step:
        raise ValueError(
            f"{checkpoint} has made {step} updates, this run is to make {max_steps}: expected a longer run, or an "
            "output_dir without another run's checkpoints."
        )


def warn_existing_checkpoints(output_dir: str | Path) -> None:
    """Warn a run that begins anew where an earlier one has saved."""
    if there := checkpoints(output_dir):
        logger.warning(
            f"{output_dir} holds checkpoints of an earlier run, the last {there[-1].name}: this run begins anew, and "
            "'auto' would take the one with the highest number."
        )


@contextmanager
def raise_on_full_disk(output_dir: str | Path) -> Iterator[None]:
    """Whatever a full disk makes a library raise becomes one `OSError` that says so and where to go on."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if not (full or "os error 28" in str(error) or _no_room(output_dir)):
            raise
        whole = next((path for path in checkpoints(output_dir)[::-1] if find_corruption(path) is None), None)
        rest = f"; {whole} is whole: make room and resume from it" if whole else ""
        raise OSError(errno.ENOSPC, f"No space left on the disk of {output_dir}{rest}") from error


def _no_room(folder: str | Path) -> bool:
    return Path(folder).exists() and shutil.disk_usage(folder).free < 2**16


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
    own = unwrap_optimizer(optimizer)
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
        known = f" ({argument}={value!r} in its {SETTINGS_FILE})" if value else ""
        raise ValueError(
            f"{path} holds {_listed(held) or 'no state'}; {name} needs {_listed(needed)}: resume with "
            f"the {those}{known}, or start anew."
        )


def _listed(keys: set[str], most: int = 4) -> str:
    public = sorted(key for key in keys if not key.startswith("_"))
    return ", ".join(public[:most]) + (", ..." if len(public) > most else "")
