"""Resuming a run: its checkpoint is chosen once for all processes, and has to fit the run."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import PartialState
from accelerate.utils import load
from torch import nn
from torch.optim import Adam, NAdam, Optimizer, RAdam

from ._logging import get_logger
from .checkpoints import copy_run_files, decide_once, read_manifest, resolve_checkpoint, start_from_scratch
from .optim.adam_family import AdamFamily
from .report.run import (
    GRADIENT_NORMS_FILE,
    SETTINGS_FILE,
    TRAINER_STATE_FILE,
    append_rows,
    read_run_settings,
    set_aside_former_run,
    truncate_rows,
)
from .schedules import unwrap_optimizer


logger = get_logger(__name__)


def prepare_resume(
    resume_from_checkpoint: str | bool | Path | None, output_dir: str | Path, model: nn.Module | None = None
) -> Path | None:
    """Resolve the checkpoint on the main process, for all, and make the files in `output_dir` those of its run.

    Args and errors as in [`~hf_warmup.checkpoints.resolve_checkpoint`]. Without a checkpoint the files of an earlier
    run are moved into a sub-folder. If the checkpoint was saved by another number of processes, a warning is logged and
    the recording notes it.
    """

    def prepare() -> Path | None:
        wanted = resume_from_checkpoint
        checkpoint = resolve_checkpoint(wanted, output_dir, model) if wanted else None
        if checkpoint is None:
            start_from_scratch(output_dir)
            return None
        ids = {read_run_settings(folder).get("run_id") for folder in (checkpoint, output_dir)}
        if len(ids - {None}) > 1:  # the files in the folder are of another run than the checkpoint
            set_aside_former_run(output_dir)
        copy_run_files(checkpoint, output_dir)
        manifest, now = read_manifest(checkpoint), PartialState().num_processes
        saved = manifest.get("num_processes")
        if saved not in (None, now):
            if (recording := Path(output_dir) / GRADIENT_NORMS_FILE).is_file():
                truncate_rows(recording, manifest["global_step"])
                changed = {"former_num_processes": saved, "num_processes": now}
                append_rows(recording, [{"step": manifest["global_step"], **changed}])
            logger.warning(
                f"{checkpoint} was saved by {saved} process{'es' * (saved > 1)} and is resumed by {now}. With the same "
                f"batch size per process an update averages {now / saved:g} times as many examples at the same "
                "learning rate; gradient_accumulation_steps can make up for it. Random states of new processes are new."
            )
        return checkpoint

    return decide_once(prepare)


class NoUpdatesLeft(Exception):
    """The checkpoint that a run resumes from has made all of its updates: nothing is left to train."""


def check_updates_left(global_step: int, max_steps: int) -> None:
    """Check that a resumed run has updates left to make.

    Raises:
        `NoUpdatesLeft`: If it has made all `max_steps` updates.
        `ValueError`: If it has made more: the checkpoint is of a longer run.
    """
    if global_step > max_steps > 0:
        raise ValueError(
            f"The checkpoint has made {global_step} updates, but this run makes {max_steps}. Train for longer, or use "
            "an output_dir without checkpoints of another run."
        )
    if global_step == max_steps:
        raise NoUpdatesLeft(f"All {max_steps} updates are made: nothing is left to train.")


def keep_finished_warmup(checkpoint: str | Path, args: Any, num_training_steps: int) -> None:
    """Warn if the length of a run in epochs has changed, and keep its warmup if that is over.

    Another number of processes, or other data, changes the number of updates of an epoch, and with it the length of the
    run and a warmup given as a share: a run past its warmup would return into it.

    Args:
        checkpoint (`str` or `Path`): The checkpoint that the run resumes from, with the settings of its run.
        args ([`~hf_warmup.WarmupTrainingArguments`]): `warmup_steps` is set to the checkpoint's if that warmup is over.
        num_training_steps (`int`): Updates that the resumed run is planned to make.
    """
    saved = read_run_settings(checkpoint)
    before = saved.get("num_training_steps"), saved.get("num_warmup_steps")
    now = num_training_steps, args.get_warmup_steps(num_training_steps)
    if args.max_steps > 0 or None in before or before == now:
        return
    logger.warning(
        f"The run was planned with {before[0]} updates, {before[1]} of them warmup, and now has {now[0]} and {now[1]}, "
        f"because an epoch has another number of updates. max_steps={before[0]} with warmup_steps={before[1]} keeps "
        "the plan. A warmup that is over stays as long as it was."
    )
    step = json.loads((Path(checkpoint) / TRAINER_STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    if before[1] <= step < now[1]:
        args.warmup_steps, args.warmup_epochs = before[1], None


_FILLED_IN = {"scheduled_lr", "warmup_steps"}  # by optimizers of hf_warmup that load the state of AdamW
_ADAM_LIKE = (Adam, NAdam, RAdam, AdamFamily)


def check_same_kind(checkpoint: str | Path, optimizer: Optimizer, lr_scheduler: Any) -> None:
    """Check, before it is loaded, that a checkpoint fits the optimizer and the schedule of this run.

    Adam, AdamW, RAdam, AdamWarmup and GIAdam can load the state of each other; so can all schedules that are functions
    of the step. Sharded optimizer state is left to the code that loads it.

    Args:
        checkpoint (`str` or `Path`): A folder that a Trainer or [`~hf_warmup.accelerate_utils.save_checkpoint`] saved.
        optimizer (`Optimizer`): The optimizer of this run.
        lr_scheduler (`LRScheduler`): The schedule of this run.

    Raises:
        `ValueError`: With the file, what it holds, and what this run needs.
    """
    own = unwrap_optimizer(optimizer)
    path, saved = _read_state(checkpoint, "optimizer")
    if "param_groups" in saved:
        states = [set(state) for state in saved["state"].values()]
        numbers = {key for key, value in own.defaults.items() if type(value) in (int, float, tuple)} - _FILLED_IN
        needed = {key for group in saved["param_groups"] for key in numbers - group.keys()}
        if states and isinstance(own, _ADAM_LIKE):
            needed |= {"exp_avg", "exp_avg_sq"} - set.intersection(*states)
        _check_keys(path, set().union(*states), needed, type(own).__name__, "optimizer", "optim")
        sizes = [[len(group["params"]) for group in groups] for groups in (saved["param_groups"], own.param_groups)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{path} is of another model, or of other trained parameters: its groups have {sizes[0]} parameters, "
                f"those of this run {sizes[1]}."
            )
    path, saved = _read_state(checkpoint, "scheduler")
    if saved:
        needed = _missing_keys(lr_scheduler.state_dict(), saved)
        by, kind = "the schedule of this run", "schedule (and WarmupUntilCallback, if any)"
        _check_keys(path, set(saved), needed, by, kind, "lr_scheduler_type")


def _read_state(checkpoint: str | Path, stem: str) -> tuple[Path, dict[str, Any]]:
    """Return the file of a Trainer or an Accelerate loop and its content, if that is one file of plain values."""
    for path in (Path(checkpoint) / f"{stem}.pt", Path(checkpoint) / f"{stem}.bin"):
        if path.is_file():
            with suppress(pickle.UnpicklingError, RuntimeError):
                return path, load(path, map_location="cpu", mmap=True)
    return Path(checkpoint), {}


def _missing_keys(own: dict[str, Any], saved: dict[str, Any]) -> set[str]:
    """Return the public keys that the saved state of a schedule lacks, those of a wrapped schedule included."""
    needed = {key for key in own.keys() - saved.keys() if not key.startswith("_")}
    if needed or "lr_scheduler" not in own:
        return needed
    return _missing_keys(own["lr_scheduler"], saved["lr_scheduler"])


def _check_keys(path: Path, held: set[str], needed: set[str], by: str, kind: str, argument: str) -> None:
    if needed:
        value = read_run_settings(path.parent).get("training_args", {}).get(argument)
        known = f" ({argument}={value!r} in its {SETTINGS_FILE})" if value else ""
        raise ValueError(
            f"{path} holds {_listed(held) or 'no state'}, but {by} needs {_listed(needed)}. Resume with the {kind} "
            f"that the checkpoint was saved with{known}, or start from scratch."
        )


def _listed(keys: set[str], most: int = 4) -> str:
    public = sorted(key for key in keys if not key.startswith("_"))
    return ", ".join(public[:most]) + (", ..." if len(public) > most else "")


class BatchRandomStates:
    """A batch sampler that lets a resumed run draw the batches that are random in the dataset or the collator again.

    A data loader draws one batch ahead: when a checkpoint is saved, the next batch has been drawn already, with earlier
    random states than the checkpoint's. They are saved too. The resumed run sets them before it draws that batch, and
    those of the checkpoint before the batch after it. Worker processes have random states of their own, and a dataset
    without a length has no batch sampler: nothing is done for them.

    Args:
        loader (`DataLoader`): Its batch sampler is replaced by this one.
        process_index (`int`): The process that draws.
        checkpoint (`Path`, *optional*): The checkpoint that the run resumes from.
        load_checkpoint (`Callable[[str], None]`): Sets the random states of a checkpoint.
    """

    def __init__(
        self, loader: Any, process_index: int, checkpoint: Path | None, load_checkpoint: Callable[[str], None]
    ):
        self._file, self._load_checkpoint = f"batch_rng_state_{process_index}.pth", load_checkpoint
        self._ahead: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self.has_resumed = False
        self._batches = loader.batch_sampler
        if self._batches is not None and loader.num_workers == 0:
            if checkpoint is not None and (checkpoint / self._file).is_file():
                self._resumed = load(checkpoint / self._file, map_location="cpu") | {"checkpoint": str(checkpoint)}
            # Past the check of torch, which forbids to replace it, and inside Accelerate's wrapper.
            vars(getattr(loader, "base_dataloader", loader))["batch_sampler"] = self

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(self._batches):  # the resumed run skips batches without drawing them
            if self._resumed and index == self._resumed["index"]:
                random.setstate(self._resumed["python"])
                numpy.random.set_state(self._resumed["numpy"])
                torch.set_rng_state(self._resumed["cpu"])
            elif self._resumed and index > self._resumed["index"]:
                self._load_checkpoint(self._resumed["checkpoint"])
                self._resumed, self.has_resumed = None, True
            states = {"python": random.getstate(), "numpy": numpy.random.get_state(), "cpu": torch.get_rng_state()}
            self._ahead = {"index": index, **states}
            yield batch
        self._ahead = self._resumed = None

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def save(self, folder: Path) -> None:
        """Save the random states from before the batch that was drawn ahead, if the epoch has one."""
        if self._ahead is not None:
            torch.save(self._ahead, folder / self._file)
