"""Checkpoints of a run: saving, deleting, checking and choosing them, and the lock on their folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, load
from safetensors import safe_open
from torch import Tensor, nn
from transformers import TrainerState

from ._logging import get_logger
from .report.run import GRADIENT_NORMS_FILE, SETTINGS_FILE, TRAINER_STATE_FILE, set_aside_former_run


logger = get_logger(__name__)
T = TypeVar("T")

MANIFEST_FILE, LOCK_FILE = "checkpoint_manifest.json", ".training.lock"
CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
UNFINISHED = "the save did not finish"


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
        before = _stats(checkpoint)
        _write_manifest(checkpoint, described)
    state.wait_for_everyone()
    yield
    state.wait_for_everyone()
    if writes:
        written = sorted(name for name, *_ in _stats(checkpoint) - before)
        _write_manifest(checkpoint, {**described, "files": {name: _describe(checkpoint / name) for name in written}})
    state.wait_for_everyone()  # whatever copies the checkpoint next finds all of it


def _stats(folder: Path) -> set[tuple[str, int, int, int]]:
    """Return name, size, time and identity of each file in `folder` but the manifest: what writing a file changes."""
    stats = ((path.relative_to(folder).as_posix(), path.stat()) for path in folder.rglob("*") if path.is_file())
    return {(name, each.st_size, each.st_mtime_ns, each.st_ino) for name, each in stats if name != MANIFEST_FILE}


def _describe(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "xxh3_128": hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()}


def _write_manifest(folder: Path, described: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{MANIFEST_FILE}"
    unfinished.write_text(_manifest_text(described), encoding="utf-8")
    unfinished.replace(folder / MANIFEST_FILE)


def _manifest_text(described: dict[str, Any]) -> str:
    """Return the manifest as text, with a digest of itself."""
    digest = xxhash.xxh3_128_hexdigest(json.dumps(described).encode())
    return json.dumps({**described, "xxh3_128": digest}, indent=1) + "\n"


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


def start_from_scratch(output_dir: str | Path) -> None:
    """Warn of checkpoints that an earlier run has saved to `output_dir`, and move its other files into a sub-folder."""
    if found := checkpoints(output_dir):
        logger.warning(
            f"{output_dir} has checkpoints of an earlier run, the last {found[-1].name}. This run starts from scratch; "
            "resume_from_checkpoint='auto' would resume from the one with the highest number."
        )
    set_aside_former_run(output_dir)


def copy_run_files(source: str | Path, target: str | Path) -> None:
    """Copy settings and recording from a run's folder to its checkpoint, or back where the run is resumed."""
    for name in (SETTINGS_FILE, GRADIENT_NORMS_FILE):
        if (Path(source) / name).is_file():
            Path(target).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(source) / name, Path(target) / name)


def use_writable_output_dir(args: Any) -> None:
    """Give a run that saves no checkpoints a temporary folder, with a warning, if its own cannot be written."""
    with suppress(OSError):
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    if args.save_strategy == "no" and not os.access(args.output_dir, os.W_OK | os.X_OK):
        unwritable, args.output_dir = args.output_dir, tempfile.mkdtemp(prefix="hf_warmup-")
        logger.warning(f"{unwritable} cannot be written. Recording to {args.output_dir}.")


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
    for path in others[: max(0, len(found) - limit)]:
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
    folder = Path(output_dir)
    with ExitStack() as stack:
        decide_once(lambda: _lock(folder, stack))
        yield


def _lock(folder: Path, stack: ExitStack) -> None:
    lock = folder / LOCK_FILE
    with suppress(ImportError, OSError):  # on Windows, or where nothing can be written: transformers trains there
        import fcntl

        if not folder.exists():
            stack.callback(_remove_if_empty, folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(lock.open("a", encoding="utf-8"))
        try:
            # Not `flock`: workers of a data loader would inherit it, and hold it for seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"output_dir={str(folder)!r} is in use by another run ({lock.read_text(encoding='utf-8').strip()}). "
                "Wait for it to end, or use another output_dir."
            ) from None
        stack.callback(lock.unlink, missing_ok=True)
        file.truncate(0)
        print(f"process {os.getpid()} on {os.uname().nodename}", file=file, flush=True)
    for leftover in folder.glob(".*ing-checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


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


# What processes of one run may differ in. Machines mount their disks in different places.
_MAY_DIFFER = re.compile(
    "dataloader_num_workers|disable_tqdm|local_rank|log_level.*|report_to|resume_from_checkpoint|run_name|"
    ".*_(dir|file|path)"
)


def check_same_arguments(arguments: dict[str, Any]) -> None:
    """Check on every process that all were started with the same arguments, or they would wait for each other in vain.

    Raises:
        `ValueError`: On every process, with an argument that differs.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    everywhere: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
    plain = json.loads(json.dumps(arguments, default=lambda _: None, skipkeys=True))  # a function cannot be compared
    torch.distributed.all_gather_object(everywhere, plain)
    for rank, other in enumerate(everywhere):
        for name, value in sorted(everywhere[0].items()):
            if other.get(name) != value and not _MAY_DIFFER.fullmatch(name):
                raise ValueError(
                    f"{name}={other.get(name)!r} on process {rank}, but {value!r} on process 0. Start all processes of "
                    "a run with the same arguments."
                )


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
    judge = _judge_manifest if os.path.lexists(folder / MANIFEST_FILE) else _judge_structure
    try:
        return judge(folder) or (None if model is None else _judge_shapes(folder, model))
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"


def _judge_manifest(folder: Path) -> str | None:
    manifest = read_manifest(folder)
    if not manifest:
        return f"{MANIFEST_FILE} is damaged"
    if manifest["files"] is None:
        return UNFINISHED
    for name, described in manifest["files"].items():
        if not (folder / name).is_file():
            return _absence(folder / name)
        if _describe(folder / name) != described:
            return f"{name} is not what was saved"
    return None


def read_manifest(checkpoint: str | Path) -> dict[str, Any]:
    """Return `global_step`, `num_processes` and `files` from the manifest; `{}` if it is missing or damaged."""
    path = Path(checkpoint) / MANIFEST_FILE
    with suppress(ValueError, TypeError, RecursionError):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        described: dict[str, Any] = {key: value for key, value in json.loads(text).items() if key != "xxh3_128"}
        if text == _manifest_text(described):
            return described
    return {}


def _absence(path: Path) -> str:
    return f"{path.name} is {'not a file' if os.path.lexists(path) else 'missing'}"


# The files that resuming reads, by the names of the Trainer and of Accelerate, and the types of what they hold. Objects
# that a loop registered may hold classes of the user, and are not loaded to check them.
_CONTENTS: dict[str, dict[str, Any] | None] = {
    r"trainer_state\.json": {
        "global_step": int,
        "log_history": list,
        "epoch": (int, float, type(None)),
        **dict.fromkeys(("max_steps", "num_train_epochs", "total_flos"), (int, float)),
    },
    r"config\.json": {},
    r"(model\.safetensors|pytorch_model\.bin)\.index\.json": {"weight_map": dict},
    r"(adapter_)?model(_\d+|-\d+-of-\d+)?\.safetensors|(pytorch|adapter)_model(_\d+|-\d+-of-\d+)?\.bin": {},
    r"optimizer(_\d+)?\.(pt|bin)": {"state": dict, "param_groups": list},
    r"scheduler(_\d+)?\.(pt|bin)|scaler\.pt|warmup_guard(_shard-\d+-of-\d+)?\.pt": {},
    r"(batch_)?rng_state(_\d+)?\.pth": {"python": tuple, "numpy": tuple, "cpu": Tensor},
    r"random_states_\d+\.pkl": {"random_state": tuple, "numpy_random_seed": tuple, "torch_manual_seed": Tensor},
    r"(sampler|dl_state_dict)(_\d+)?\.bin|custom_checkpoint_\d+\.pkl": None,
}
# It needs a file of each kind: the names of the Trainer and of Accelerate, then other names.
_NEEDED = {
    "model.safetensors": ("*.safetensors", "*model*.bin", "pytorch_model*", "global_step*", "*/adapter_model.*"),
    "optimizer.pt or optimizer.bin": ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*", "pytorch_model"),
    "scheduler.pt": ("scheduler.pt", "random_states_*.pkl", "global_step*"),  # a loop need not prepare its schedule
    "rng_state.pth or random_states_0.pkl": ("rng_state*.pth", "random_states_*.pkl"),
}


def _judge_structure(folder: Path) -> str | None:
    if not os.path.lexists(folder / TRAINER_STATE_FILE):  # written last
        return UNFINISHED
    for path in sorted(folder.iterdir()):
        pattern = next((each for each in _CONTENTS if re.fullmatch(each, path.name)), None)
        if pattern is None:
            continue
        if not path.is_file():
            return _absence(path)
        try:
            if problem := _judge_content(path, _CONTENTS[pattern]):
                return problem
        except PermissionError:
            raise
        except Exception:  # safetensors, zipfile, json and pickle have dozens for a damaged or a wrong file
            return f"{path.name} is damaged, or is not what its name says"
    # A process that is alone saves `rng_state.pth`: numbered ones belong to at least two.
    ranks = {int(path.stem.rpartition("_")[2]) for path in folder.glob("rng_state_*.pth")}
    if ranks and (missing := set(range(max(2, 1 + max(ranks)))) - ranks):
        return f"rng_state_{min(missing)}.pth is missing"
    absent = (name for name, patterns in _NEEDED.items() if not any(next(folder.glob(each), None) for each in patterns))
    return next((f"{name} is missing" for name in absent), None)


def _judge_content(path: Path, types: dict[str, Any] | None) -> str | None:
    """Return the problem if it is with another file. Raise an error of any kind if it is with this one."""
    if path.suffix not in (".json", ".safetensors"):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError
    if types is None:
        return None
    content = _read(path)
    if not all(isinstance(content.get(key), each) for key, each in types.items()):
        raise ValueError
    if path.name == TRAINER_STATE_FILE:
        state, folder = TrainerState(**content), path.parent
        if CHECKPOINT_PATTERN.fullmatch(folder.name) and _step(folder) != state.global_step:
            raise ValueError
    shards = (path.with_name(name) for name in content.get("weight_map", {}).values())
    return next((_absence(shard) for shard in shards if not shard.is_file()), None)


def _read(path: Path) -> Any:
    """Return what a file holds; tensors of safetensors without their values."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    return load(path, map_location="cpu", mmap=True)


def _judge_shapes(folder: Path, model: nn.Module) -> str | None:
    """Name a parameter that has another shape; adapters and FSDP's folders are left to the code that loads them."""
    saved: dict[str, tuple[str, torch.Size]] = {}
    for path in folder.iterdir():
        if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin", path.name):
            saved |= {name: (path.name, value.shape) for name, value in _read(path).items()}
    expected = {name: p.shape for name, p in model.named_parameters()}
    # Some models of transformers save under other names than they train under: one in common is enough.
    common = sorted(saved.keys() & expected.keys())
    for name in common:
        file, shape = saved[name]
        if shape != expected[name]:
            return f"{file} is of another model ({name} has the shape {list(shape)}, not {list(expected[name])})"
    if common or not saved:
        return None
    return f"{min(saved.values())[0]} is of another model (it has none of its parameters)"


# Resuming


def latest_complete(output_dir: str | Path, model: nn.Module | None = None) -> tuple[Path | None, dict[str, str]]:
    """Return the latest complete checkpoint, if any, and what is wrong with each of the later ones, by name."""
    problems: dict[str, str] = {}
    for path in checkpoints(output_dir)[::-1]:
        if (problem := find_corruption(path, model)) is None:
            return path, problems
        problems[path.name] = problem
    return None, problems


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
    asked = str(resume_from_checkpoint)
    if asked.lower() not in ("true", "auto"):
        return _resolve_explicit_path(Path(asked), output_dir, model)
    found, problems = latest_complete(output_dir, model)
    if found is not None:
        for name, problem in problems.items():
            logger.warning(f"{name} is skipped ({problem}). Resuming from {found.name}.")
        return found
    described = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    if asked.lower() == "auto" and all(problem == UNFINISHED for problem in problems.values()):
        if problems:
            logger.warning(f"Starting from scratch, because there is no complete checkpoint ({described}).")
        return None
    raise ValueError(
        f"resume_from_checkpoint={asked!r}: {output_dir} has no complete checkpoint{described and f' ({described})'}."
    )


def _resolve_explicit_path(chosen: Path, output_dir: str | Path, model: nn.Module | None) -> Path:
    if not chosen.is_dir():
        raise ValueError(f"resume_from_checkpoint={str(chosen)!r}: there is no such folder.")
    is_run = bool(checkpoints(chosen))
    problem = "this is the folder of a run, not a checkpoint" if is_run else find_corruption(chosen, model)
    if problem is None:
        return chosen
    found, _ = latest_complete(chosen if is_run else output_dir, model)
    offer = f"The latest complete checkpoint is {found}." if found else "There is no other complete checkpoint."
    raise ValueError(f"resume_from_checkpoint={str(chosen)!r}: {problem}. {offer}")


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
        complete, _ = latest_complete(output_dir)
        hint = f". Free some space and resume from {complete}, which is complete" if complete else ""
        raise OSError(errno.ENOSPC, f"No space left on the disk of {output_dir}{hint}") from error
