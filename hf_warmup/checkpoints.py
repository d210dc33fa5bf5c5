"""Checkpoints of a run: saving, checking, choosing and deleting them, and what has to match to resume from one."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, load
from safetensors import safe_open
from torch import nn
from torch.optim import Adam, NAdam, Optimizer, RAdam
from transformers import TrainerState

from ._logging import get_logger
from .optim.adam_family import AdamFamily
from .report.run import GRADIENT_NORMS_FILE, SETTINGS_FILE, TRAINER_STATE_FILE, read_run_settings, set_aside_former_run
from .schedules import unwrap_optimizer


logger = get_logger(__name__)
T = TypeVar("T")

MANIFEST_FILE, LOCK_FILE = "checkpoint_manifest.json", ".training.lock"
CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
UNFINISHED = "the save did not finish"

# Without a manifest a checkpoint needs a file of each kind: the names of the Trainer and of Accelerate, then others.
_NEEDED = {
    "model.safetensors": ("*.safetensors", "*model*.bin", "pytorch_model*", "global_step*", "*/adapter_model.*"),
    "optimizer.pt or optimizer.bin": ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*", "pytorch_model"),
    "scheduler.pt": ("scheduler.pt", "random_states_*.pkl", "global_step*"),  # a loop need not prepare its schedule
    "rng_state.pth or random_states_0.pkl": ("rng_state*.pth", "random_states_*.pkl"),
}


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the folders `checkpoint-N` of `output_dir`, complete or not, sorted by N."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if CHECKPOINT_PATTERN.fullmatch(path.name)]
    return sorted((path for path in folders if path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


# Saving


@contextmanager
def complete_with_manifest(checkpoint: Path, global_step: int, writes: bool = True) -> Iterator[None]:
    """List the files that are saved to `checkpoint` within this context, with sizes and digests, in its manifest.

    The manifest says that the save did not finish until all processes have written their files. Files that were there
    before and are not written again are not listed: resuming does not judge them.

    Args:
        checkpoint (`Path`): The folder that the files are saved to.
        global_step (`int`): Updates made, at least 0.
        writes (`bool`, defaults to `True`): Whether this process writes the manifest; all others wait.
    """
    state = PartialState()
    described = {"global_step": global_step, "num_processes": state.num_processes, "files": None}
    if writes:
        if any(os.path.lexists(checkpoint / name) for name in (MANIFEST_FILE, TRAINER_STATE_FILE)):
            delete_checkpoint(checkpoint)  # of an earlier attempt; it may be damaged
        before = _signatures(checkpoint)
        _write_manifest(checkpoint, described)
    state.wait_for_everyone()
    yield
    state.wait_for_everyone()
    if writes:
        new = _signatures(checkpoint).items() - before.items()
        described["files"] = {
            name: {"bytes": size, "xxh3_128": _digest(checkpoint / name)} for name, (size, *_) in sorted(new)
        }
        _write_manifest(checkpoint, described)
    state.wait_for_everyone()  # whatever copies the checkpoint next finds all of it


def _signatures(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return size, time and identity of each file in `folder` but the manifest: what writing a file changes."""
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    stats.pop(MANIFEST_FILE, None)
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def _write_manifest(folder: Path, described: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{MANIFEST_FILE}"
    unfinished.write_text(_manifest_text(described), encoding="utf-8")
    unfinished.replace(folder / MANIFEST_FILE)


def _manifest_text(described: dict[str, Any]) -> str:
    """Return the manifest as text, with a digest of itself."""
    digest = xxhash.xxh3_128_hexdigest(json.dumps(described).encode())
    return json.dumps({**described, "xxh3_128": digest}, indent=1) + "\n"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def save_trainer_checkpoint(trainer: Any, trial: Any, save: Callable[[Path], None]) -> None:
    """Complete the checkpoint that `save` writes with settings, recording and manifest; then delete older checkpoints.

    transformers deletes older checkpoints before there is a manifest, in an order that follows the clock: it gets no
    `save_total_limit` while it saves.
    """
    args, state = trainer.args, trainer.state
    checkpoint = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{state.global_step}"
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        with complete_with_manifest(checkpoint, state.global_step, args.should_save):
            save(checkpoint)
            args.save_total_limit = limit
            if args.should_save:
                copy_run_files(args.output_dir, checkpoint)
                if (checkpoint / "training_args.bin").is_file():  # saved without the limit
                    torch.save(args, checkpoint / "training_args.bin")
    finally:
        args.save_total_limit = limit
    if args.should_save:
        delete_old_checkpoints(checkpoint, limit, state.best_model_checkpoint)


def move_former_run(output_dir: str | Path) -> None:
    """Move the files of another run in `output_dir` into a sub-folder, and log where they are."""
    if (aside := set_aside_former_run(output_dir)) is not None:
        logger.warning(f"The files of the former run in {output_dir} were moved to {aside.name}.")


def copy_run_files(source: str | Path, target: str | Path) -> None:
    """Copy settings and recording from a run's folder to its checkpoint, or back where the run is resumed."""
    for name in (SETTINGS_FILE, GRADIENT_NORMS_FILE):
        before, after = Path(source) / name, Path(target) / name
        if before.is_file() and not (after.is_file() and filecmp.cmp(before, after, shallow=False)):
            after.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(before, after)


def use_writable_output_dir(args: Any) -> None:
    """Give a run that saves no checkpoints a temporary folder, with a warning, if its own cannot be written."""
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.output_dir):
            pass
    except OSError as error:
        if args.save_strategy == "no":
            unwritable, args.output_dir = args.output_dir, tempfile.mkdtemp(prefix="hf_warmup-")
            logger.warning(f"{unwritable} cannot be written ({error.strerror}). Recording to {args.output_dir}.")


# Deleting


def delete_old_checkpoints(newest: Path, limit: int | None, keep: str | Path | None = None) -> None:
    """Delete checkpoints in the folder of `newest` until `limit` are left, but neither `newest` nor `keep`.

    Checkpoints of later updates go first, because only an earlier run can have saved them; then those of the earliest
    updates. The order does not depend on the clock.
    """
    if not limit or limit < 0:
        return
    protected = {newest.name, Path(keep or newest).name}
    found = checkpoints(newest.parent)
    others = [path for path in found if path.name not in protected]
    others.sort(key=lambda path: (_step(path) <= _step(newest), _step(path)))
    for path in others[: max(0, len(found) - max(limit, len(found) - len(others)))]:
        delete_checkpoint(path)


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a run that is killed leaves no incomplete one."""
    hidden = checkpoint.with_name(f".deleting-{checkpoint.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(FileNotFoundError):
        checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def lock_output_dir(output_dir: str | Path) -> Iterator[None]:
    """Hold an advisory lock on `output_dir` while a run trains there, and clear what killed saves and deletions left.

    Raises:
        `ValueError`: On every process, if another run holds the lock.
    """
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(_file_lock(Path(output_dir)))
            for leftover in Path(output_dir).glob(".*ing-checkpoint-*"):
                shutil.rmtree(leftover, ignore_errors=True)

        decide_once(begin)
        yield


@contextmanager
def _file_lock(output_dir: Path) -> Iterator[None]:
    try:
        import fcntl

        is_new = not output_dir.exists()
        output_dir.mkdir(parents=True, exist_ok=True)
        file = (output_dir / LOCK_FILE).open("a+", encoding="utf-8")
    except (ImportError, OSError):  # Windows, or a folder that cannot be written: transformers trains there
        yield
        return
    with file:
        try:
            # Not `flock`: workers of a data loader would inherit it, and hold it for seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ValueError(
                    f"output_dir={str(output_dir)!r} is in use by another run ({file.read().strip()}). Wait for it to "
                    "end, or use another output_dir."
                ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        try:
            yield
        finally:
            (output_dir / LOCK_FILE).unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # it holds files
                    output_dir.rmdir()


def decide_once(decide: Callable[[], T]) -> T:
    """Return the result of `decide()` of the main process on every process, or raise its error on every process."""
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = decide()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


# Checking


def find_corruption(checkpoint: str | Path, model: nn.Module | None = None) -> str | None:
    """Find out what is wrong with a checkpoint.

    The files of the manifest have to be there as they were saved. Without a manifest, as transformers itself saves, the
    files that resuming reads have to be readable and of the right kind. Other files are not judged.

    Args:
        checkpoint (`str` or `Path`): A folder that a Trainer or [`~hf_warmup.accelerate_utils.save_checkpoint`] saved.
        model (`nn.Module`, *optional*): Its parameters have to be of the shapes in `model.safetensors`.

    Returns:
        `str`, *optional*: A phrase that begins with the file's name, such as `"optimizer.pt is missing"`; `None` for a
        complete checkpoint.
    """
    folder = Path(checkpoint)
    judge = _check_manifest if os.path.lexists(folder / MANIFEST_FILE) else _check_structure
    try:
        return judge(folder) or (None if model is None else _check_shapes(folder, model))
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"


def _check_manifest(folder: Path) -> str | None:
    try:
        files = read_manifest(folder)["files"]
    except ValueError:
        return f"{MANIFEST_FILE} is damaged"
    if files is None:
        return UNFINISHED
    for name, saved in files.items():
        path = folder / name
        if not path.is_file():
            return _absence(path)
        if path.stat().st_size != saved["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {saved['bytes']}"
        if _digest(path) != saved["xxh3_128"]:
            return f"{name} is not what was saved"
    return None


def read_manifest(checkpoint: str | Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint: `global_step`, `num_processes` and `files`; `{}` if it has none.

    Raises:
        `ValueError`: If it is not as it was written.
    """
    path = Path(checkpoint) / MANIFEST_FILE
    if not os.path.lexists(path):
        return {}
    with suppress(ValueError, TypeError, RecursionError):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        described: dict[str, Any] = {key: value for key, value in json.loads(text).items() if key != "xxh3_128"}
        if text == _manifest_text(described):
            return described
    raise ValueError(f"{path} is damaged.")


def _absence(path: Path) -> str:
    return f"{path.name} is {'not a file' if os.path.lexists(path) else 'missing'}"


def _check_structure(folder: Path) -> str | None:
    if not os.path.lexists(folder / TRAINER_STATE_FILE):  # written last
        return UNFINISHED
    checks = {
        path: check for pattern, check in _CHECKS.items() for path in folder.iterdir() if pattern.fullmatch(path.name)
    }
    for path, check in checks.items():
        if not path.is_file():
            return _absence(path)
        try:
            check(path)
        except PermissionError:
            raise
        except FileNotFoundError as error:
            return _absence(Path(error.filename))
        except Exception:  # safetensors, zipfile, json and pickle have dozens for a damaged or a wrong file
            return f"{path.name} is damaged, or is not what its name says"
    absent = (name for name, patterns in _NEEDED.items() if not any(next(folder.glob(each), None) for each in patterns))
    return next((f"{name} is missing" for name in absent), None)


# Checks of the files that resuming reads; each raises an error of any kind.


def _require(condition: object) -> None:
    if not condition:
        raise ValueError


def _check_state(path: Path) -> None:
    state = vars(TrainerState.load_from_json(str(path)))
    numbers = {key: value for key, value in state.items() if key in _NUMBERS and value is not None}
    _require(all(isinstance(value, (int, float)) for value in numbers.values()))
    _require(type(state["global_step"]) is int)
    _require(path.parent.name in (f"checkpoint-{state['global_step']}", path.parent.name.partition("-")[0]))
    _require(isinstance(state["log_history"], list) and all(isinstance(each, dict) for each in state["log_history"]))
    _require(state["train_batch_size"] or not (path.parent / "optimizer.pt").exists())


def _check_config(path: Path) -> None:
    _require(isinstance(json.loads(path.read_text(encoding="utf-8")), dict))


def _check_index(path: Path) -> None:
    for name in set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()):
        (path.parent / name).stat()


def _check_safetensors(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        file.keys()


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        _require(archive.testzip() is None)


def _load_state(path: Path) -> dict[str, Any]:
    _check_archive(path)
    state = load(path, map_location="cpu", mmap=True)
    _require(isinstance(state, dict))
    return cast(dict[str, Any], state)


def _check_optimizer(path: Path) -> None:
    state = _load_state(path)
    _require(all(isinstance(each, dict) for each in state["state"].values()) and state["param_groups"])
    _require(all(isinstance(group["params"], list) for group in state["param_groups"]))


def _check_random_states(path: Path) -> None:
    state = _load_state(path)
    python, numpy_, torch_ = _RANDOM_STATES[path.suffix]
    random.Random().setstate(state[python])
    numpy.random.RandomState().set_state(state[numpy_])
    torch.Generator().set_state(state[torch_])


_RANDOM_STATES = {
    ".pkl": ("random_state", "numpy_random_seed", "torch_manual_seed"),  # of Accelerate
    ".pth": ("python", "numpy", "cpu"),
}
_NUMBERS = {
    "epoch",
    "global_step",
    "max_steps",
    "train_batch_size",
    "num_train_epochs",
    "num_input_tokens_seen",
    "total_flos",
}
_CHECKS: dict[re.Pattern[str], Callable[[Path], object]] = {
    re.compile(pattern): check
    for pattern, check in {
        r"trainer_state\.json": _check_state,
        r"config\.json": _check_config,
        r"(model\.safetensors|pytorch_model\.bin)\.index\.json": _check_index,
        r"model(_\d+|-\d+-of-\d+)?\.safetensors|adapter_model\.safetensors": _check_safetensors,
        r"pytorch_model(_\d+|-\d+-of-\d+)?\.bin|adapter_model\.bin": _load_state,
        r"optimizer(_\d+)?\.(pt|bin)": _check_optimizer,
        r"scheduler(_\d+)?\.(pt|bin)|scaler\.pt|warmup_guard\.pt": _load_state,
        r"rng_state(_\d+)?\.pth|random_states_\d+\.pkl": _check_random_states,
        r"(sampler|dl_state_dict)(_\d+)?\.bin|custom_checkpoint_\d+\.pkl": _check_archive,
    }.items()
}


def _check_shapes(folder: Path, model: nn.Module) -> str | None:
    """Name a parameter that has another shape; adapters and FSDP's folders are left to the code that loads them."""
    saved: dict[str, tuple[str, list[int]]] = {}
    for path in folder.iterdir():
        if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", path.name):
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                saved |= {name: (path.name, file.get_slice(name).get_shape()) for name in names}
        elif re.fullmatch(r"pytorch_model(-\d+-of-\d+)?\.bin", path.name):
            weights = load(path, map_location="cpu", mmap=True)
            saved |= {name: (path.name, list(tensor.shape)) for name, tensor in weights.items()}
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    # Some models of transformers save under other names than they train under: one in common is enough.
    common = sorted(saved.keys() & expected.keys())
    for name in common:
        file, shape = saved[name]
        if shape != expected[name]:
            return f"{file} is of another model ({name} has the shape {shape}, not {expected[name]})"
    if common or not saved:
        return None
    return f"{min(saved.values())[0]} is of another model (it has none of its parameters)"


# Resuming


def resolve_checkpoint(
    resume_from_checkpoint: str | bool | Path, output_dir: str | Path, model: nn.Module | None = None
) -> Path | None:
    """Return the complete checkpoint to resume from.

    Args:
        resume_from_checkpoint (`str`, `bool` or `Path`): A checkpoint; `True` or `"true"` for the latest complete one
            of `output_dir`; `"auto"` for the same, or `None` if no save has finished yet.
        output_dir (`str` or `Path`): The folder that the run saves to.
        model (`nn.Module`, *optional*): As in [`find_corruption`].

    Raises:
        `ValueError`: If the checkpoint is damaged, with the file's name and the latest complete checkpoint; or if there
            is no complete one.
    """
    asked, newest_first = str(resume_from_checkpoint), checkpoints(output_dir)[::-1]
    if asked.lower() not in ("true", "auto"):
        return _resolve_explicit_path(Path(asked), newest_first, model)
    problems: dict[str, str] = {}
    for path in newest_first:
        problem = find_corruption(path, model)
        if problem is None:
            for name, earlier in problems.items():
                logger.warning(f"{name} is skipped ({earlier}). Resuming from {path.name}.")
            return path
        problems[path.name] = problem
    described = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    if asked.lower() == "auto" and all(problem == UNFINISHED for problem in problems.values()):
        if problems:
            logger.warning(f"Starting from scratch, because there is no complete checkpoint ({described}).")
        return None
    raise ValueError(
        f"resume_from_checkpoint={asked!r}: {output_dir} has no complete checkpoint{described and f' ({described})'}."
    )


def _resolve_explicit_path(chosen: Path, newest_first: list[Path], model: nn.Module | None) -> Path:
    if not chosen.is_dir():
        raise ValueError(f"resume_from_checkpoint={str(chosen)!r}: there is no such folder.")
    inside = checkpoints(chosen)[::-1]
    problem = "this is the folder of a run, not a checkpoint" if inside else find_corruption(chosen, model)
    if problem is None:
        return chosen
    others = inside or [path for path in newest_first if path.resolve() != chosen.resolve()]
    complete = next((path for path in others if find_corruption(path, model) is None), None)
    offer = f"The latest complete checkpoint is {complete}." if complete else "There is no other complete checkpoint."
    raise ValueError(f"resume_from_checkpoint={str(chosen)!r}: {problem}. {offer}")


def prepare_resume(
    resume_from_checkpoint: str | bool | Path, output_dir: str | Path, model: nn.Module | None = None
) -> Path | None:
    """Resolve the checkpoint on the main process, for all, and bring its settings and recording to `output_dir`.

    Args and errors as in [`resolve_checkpoint`]. Logs a warning if the checkpoint was saved by another number of
    processes.
    """

    def prepare() -> Path | None:
        checkpoint = resolve_checkpoint(resume_from_checkpoint, output_dir, model)
        if checkpoint is not None:
            ids = {read_run_settings(folder).get("run_id") for folder in (checkpoint, output_dir)}
            if len(ids - {None}) > 1:  # the files in the folder are of another run than the checkpoint
                move_former_run(output_dir)
            copy_run_files(checkpoint, output_dir)
            saved, now = read_manifest(checkpoint).get("num_processes"), PartialState().num_processes
            if saved not in (None, now):
                logger.warning(
                    f"{checkpoint} was saved by {saved} processes and is resumed by {now}. With the same batch size "
                    f"per process an update averages {now / saved:g} times as many examples at the same learning rate; "
                    "gradient_accumulation_steps can make up for it. Random states of new processes are new."
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
    step = json.loads((Path(checkpoint) / TRAINER_STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    kept = before[1] <= step < now[1]
    logger.warning(
        f"The run was planned with {before[0]} updates, {before[1]} of them warmup, and now has {now[0]} and {now[1]}, "
        "because an epoch has another number of updates. "
        f"{f'The warmup is over and stays at {before[1]} updates. ' if kept else ''}"
        f"max_steps={before[0]} with warmup_steps={before[1]} keeps the plan."
    )
    if kept:
        args.warmup_steps, args.warmup_epochs = before[1], None


def warn_existing_checkpoints(output_dir: str | Path) -> None:
    """Warn a run that starts from scratch where an earlier one has saved checkpoints."""
    if found := checkpoints(output_dir):
        logger.warning(
            f"{output_dir} has checkpoints of an earlier run, the last {found[-1].name}. This run starts from scratch; "
            "resume_from_checkpoint='auto' would resume from the one with the highest number."
        )


@contextmanager
def raise_on_full_disk(output_dir: str | Path) -> Iterator[None]:
    """Turn whatever a library raises on a full disk into one `OSError` with the checkpoint to resume from."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        there = Path(output_dir).exists()
        if not (full or "os error 28" in str(error) or (there and shutil.disk_usage(output_dir).free < 2**16)):
            raise
        complete = next((path for path in checkpoints(output_dir)[::-1] if find_corruption(path) is None), None)
        hint = f". Free some space and resume from {complete}, which is complete" if complete else ""
        raise OSError(errno.ENOSPC, f"No space left on the disk of {output_dir}{hint}") from error


# Optimizers and schedules


# State of the parameter's own shape; factored and quantised optimizers keep their state under other names.
_LIKE_THE_PARAMETER = {"acc_delta", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum"}
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
        numbers = {key for key, value in own.defaults.items() if type(value) in (int, float, tuple)}
        needed = {key for group in saved["param_groups"] for key in numbers - group.keys()} - _FILLED_IN
        if states and isinstance(own, _ADAM_LIKE):
            needed |= {"exp_avg", "exp_avg_sq"} - set.intersection(*states)
        made_with = "optimizer that the checkpoint was saved with"
        _raise_if_needed(path, set().union(*states), needed, type(own).__name__, made_with, "optim")
        if odd := _parameter_mismatch(own, saved):
            raise ValueError(f"{path} is of another model, or of other trained parameters: {odd}.")
    path, saved = _read_state(checkpoint, "scheduler")
    if path.is_file():
        needed = _missing_keys(lr_scheduler.state_dict(), saved)
        made_with = "schedule (and WarmupUntilCallback, if any) that the checkpoint was saved with"
        _raise_if_needed(path, set(saved), needed, "the schedule of this run", made_with, "lr_scheduler_type")


def _read_state(checkpoint: str | Path, stem: str) -> tuple[Path, dict[str, Any]]:
    """Return the file of a Trainer or an Accelerate loop and its content, if that is one file of plain values."""
    for path in (Path(checkpoint) / f"{stem}.pt", Path(checkpoint) / f"{stem}.bin"):
        if path.is_file():
            with suppress(pickle.UnpicklingError, RuntimeError):
                return path, load(path, map_location="cpu", mmap=True)
    return Path(checkpoint), {}


def _parameter_mismatch(optimizer: Optimizer, saved: dict[str, Any]) -> str | None:
    """Compare the shapes of the saved state with those of the parameters, one by one."""
    sizes = [[len(group["params"]) for group in groups] for groups in (saved["param_groups"], optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        return f"its groups have {sizes[0]} parameters, those of this run {sizes[1]}"
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        if "rank" in own:  # of projections of the gradient: GaLore, APOLLO
            continue
        for index, p in zip(group["params"], own["params"], strict=True):
            for key in saved["state"].get(index, {}).keys() & _LIKE_THE_PARAMETER:
                shape = getattr(saved["state"][index][key], "shape", p.shape)
                if shape != p.shape and isinstance(index, int):  # FSDP saves names, and flattens parameters
                    return f"{key} of parameter {index} has the shape {list(shape)}, not {list(p.shape)}"
    return None


def _missing_keys(own: dict[str, Any], saved: dict[str, Any]) -> set[str]:
    """Return the public keys that the saved state of a schedule lacks, those of a wrapped schedule included."""
    needed = {key for key in own.keys() - saved.keys() if not key.startswith("_")}
    if needed or "lr_scheduler" not in own:
        return needed
    return _missing_keys(own["lr_scheduler"], saved["lr_scheduler"])


def _raise_if_needed(path: Path, held: set[str], needed: set[str], name: str, made_with: str, argument: str) -> None:
    if needed:
        value = read_run_settings(path.parent).get("training_args", {}).get(argument)
        known = f" ({argument}={value!r} in its {SETTINGS_FILE})" if value else ""
        raise ValueError(
            f"{path} holds {_listed(held) or 'no state'}, but {name} needs {_listed(needed)}. Resume with the "
            f"{made_with}{known}, or start from scratch."
        )


def _listed(keys: set[str], most: int = 4) -> str:
    public = sorted(key for key in keys if not key.startswith("_"))
    return ", ".join(public[:most]) + (", ..." if len(public) > most else "")
