"""The files of a run folder: their names, how they are written, and how they are read into the columns of a [`Run`].

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import uuid
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import count, pairwise
from math import inf, isclose, isfinite, nan
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..norms.grouping import find_stacks


logger = logging.getLogger(__name__)

SETTINGS_FILE = "run_settings.json"
GRADIENT_NORMS_FILE = "gradient_norms.jsonl"
TRAINER_STATE_FILE = "trainer_state.json"
RESULTS_FILE = "all_results.json"
UPDATE_PREFIXES = ("update_norm/", "update_ratio/")  # keys of a layer's update, and of its ratio to the weights
GROWING_STACKS = "growing_stacks"  # key of a recording's first row
LOG_PREFIX = "grad_norm"  # of the log's and the recording's keys: `grad_norm`, `grad_norm/<layer>`
PACKAGES = ("hf-warmup", "torch", "transformers", "accelerate", "datasets")

PathLike = str | os.PathLike[str]


# --- run_settings.json ---


def environment() -> dict[str, str]:
    """Return versions, commit and machine of this process; the device only if torch has been imported."""
    described = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # a checkout that is not installed has no version
            described[name] = version(name)
    described["python"] = platform.python_version()
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no repository
        git = ["git", "rev-parse", "--short", "HEAD"]
        described["commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    machine = f"{platform.system()} {platform.machine()}"
    if torch := sys.modules.get("torch"):
        if torch.cuda.is_available():
            machine += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        else:
            threads = torch.get_num_threads()
            machine += f", CPU, {threads} thread{'s' if threads > 1 else ''}"
    return described | {"machine": machine}


def command_line(argv: list[str]) -> str:
    """Return `argv` as a shell command in which secrets are replaced by `...`.

    Example:

    ```python
    >>> command_line(["/usr/bin/python3", "train.py", "--hub_token", "hf_secret", "--optim=radam"])
    'python train.py --hub_token ... --optim=radam'

    ```
    """
    words = ["python", *argv[1:]]
    for i in range(1, len(words)):
        if re.fullmatch(r"--?\w*(token|key|password|secret)", words[i - 1]):
            words[i] = "..."
        words[i] = re.sub(r"(?<=token=|..key=)\S+|hf_[A-Za-z0-9]{20,}", "...", words[i])
    return shlex.join(words).replace("'...'", "...")


# Arguments that change the result of training; a resumed run warns if one of them changed.
_DECISIVE = re.compile(
    "^optim|learning_rate|weight_decay|^adam_|^lr_scheduler|warmup|train_batch|accumulation|train_epochs|"
    "^max_steps|^max_train_steps|^max_grad_norm|^seed"
)


def read_run_settings(folder: PathLike) -> dict[str, Any]:
    """Return the content of the `run_settings.json` in `folder`, or `{}` if there is none that can be read."""
    return _read_optional(Path(folder) / SETTINGS_FILE)


def _changes(before: Mapping[str, Any], training_args: Mapping[str, Any]) -> list[str]:
    """Return `"learning_rate was 0.001, is 0.002"` for each decisive argument that differs."""
    now = json.loads(json.dumps(dict(training_args), default=str))
    keys = [key for key in now if _DECISIVE.search(key) and key in before and before[key] != now[key]]
    return [f"{key} was {before[key]}, is {now[key]}" for key in keys]


def write_run_settings(
    folder: PathLike,
    training_args: Mapping[str, Any],
    model_config: Mapping[str, Any],
    num_training_steps: int,
    num_warmup_steps: int,
    resumed: bool = False,
    num_processes: int = 1,
    unused: Sequence[str] = (),
) -> str:
    """Write `run_settings.json` into a run's output folder. Log a warning if a resumed run has other settings.

    Args:
        folder (`str` or `os.PathLike`): The run's output folder.
        training_args (`Mapping[str, Any]`): The training arguments, as from `args.to_dict()`, which masks tokens.
        model_config (`Mapping[str, Any]`): The model's configuration, as from `model.config.to_dict()`.
        num_training_steps (`int`): The number of updates that the run is planned to make.
        num_warmup_steps (`int`): The resolved length of the warmup in updates.
        resumed (`bool`, defaults to `False`): Whether the run continues from a checkpoint whose settings
            were copied to `folder`. It then keeps the identifier of that run.
        num_processes (`int`, defaults to 1): The number of processes that train together.
        unused (`Sequence[str]`): The arguments that the user's own optimizer or scheduler replaces.

    Returns:
        `str`: The identifier of the run.
    """
    before = read_run_settings(folder) if resumed else {}
    notebook = "ipykernel" in sys.modules  # the command line of a notebook's kernel says nothing about the run
    run_id = str(before.get("run_id") or uuid.uuid4().hex)
    described = {
        "run_id": run_id,
        "made_with": environment() | ({} if notebook else {"command": command_line(sys.orig_argv)}),
        "num_training_steps": num_training_steps,
        "num_warmup_steps": num_warmup_steps,
        "num_processes": num_processes,
        "unused_arguments": list(unused),
        "training_args": dict(training_args),
        "model_config": dict(model_config),
    }
    if changes := _changes(before.get("training_args", {}), training_args):
        logger.warning(
            f"The run is resumed with other settings: {'; '.join(changes)}. The optimizer's options (peak learning "
            "rate, weight decay, betas, the warmup of adam_warmup) and a schedule that follows a metric are kept from "
            "the checkpoint. Shape, warmup and length of any other schedule are new from the second resumed update on."
        )
    _write_json(Path(folder) / SETTINGS_FILE, described)
    return run_id


def write_run_end(folder: PathLike, step: int, reason: str, signal: str | None = None) -> None:
    """Note in `run_settings.json` at which update training ended and why.

    Args:
        folder (`str` or `os.PathLike`): The run's output folder. Nothing happens if it has no `run_settings.json`.
        step (`int`): The number of updates made.
        reason (`str`): `"finished"`, `"stopped early"` (by a callback) or `"interrupted"` (by Ctrl-C or a signal).
        signal (`str`, *optional*): The name of the signal that interrupted it, after a complete checkpoint.
    """
    if described := read_run_settings(folder):
        ended = {"step": step, "reason": reason} | ({"signal": signal} if signal else {})
        _write_json(Path(folder) / SETTINGS_FILE, described | {"ended": ended})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def set_aside_former_run(folder: PathLike) -> None:
    """Move the files of a former run in `folder` into a sub-folder, so that a new run does not mix with them.

    The sub-folder is `former_run-1`, `former_run-2`, ..., which a warning names. Checkpoints stay: each holds the
    identifier of its run.
    """
    folder = Path(folder)
    names = (SETTINGS_FILE, GRADIENT_NORMS_FILE, TRAINER_STATE_FILE, RESULTS_FILE)
    found = [folder / name for name in names if (folder / name).is_file()]
    if found:
        aside = next(path for i in count(1) if not (path := folder / f"former_run-{i}").exists())
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)
        logger.warning(f"The files of the former run in {folder} were moved to {aside.name}.")


# --- gradient_norms.jsonl ---


def append_rows(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a recording, one JSON object a line. If the disk is full, append nothing and raise `OSError`.

    A row holds `step` (the update, counted from 1) and further keys with a number, `null`, or a list of numbers (one
    per parameter group): `grad_norm`, `grad_norm/<layer>`, `learning_rate`, `loss`. The key `nonfinite` lists the
    layers whose norm was not finite. Rows of the same step are read as one.
    """
    path = Path(path)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end and file.seek(end - 1) and file.read(1) != b"\n":  # a process was killed while it wrote a line
            lines = b"\n" + lines
        try:
            unwritten = memoryview(lines)
            while unwritten:
                unwritten = unwritten[file.write(unwritten) :]
        except OSError:
            file.truncate(end)
            raise


def truncate_rows(path: PathLike, step: int) -> None:
    """Remove the rows after update `step` from a recording, in place and in constant memory.

    Args:
        path (`str` or `os.PathLike`): The recording. Nothing happens if there is no such file.
        step (`int`): The last update that is kept.
    """
    with suppress(FileNotFoundError), Path(path).open("r+b") as file:
        file.truncate(_end_of_step(file, step))


_BLOCK = 1 << 16


def _end_of_step(file: BinaryIO, step: int) -> int:
    """Return the offset after the last complete row at or before update `step`, searched from the end."""
    start, block, limit = file.seek(0, os.SEEK_END), b"", 0
    while start:
        size = min(_BLOCK, start)
        start -= size
        file.seek(start)
        block = file.read(size) + block[:limit]
        limit = len(block)
        while limit:
            begin = block.rfind(b"\n", 0, limit - 1) + 1
            if begin == 0 and start:  # the line begins in the block before
                break
            row = parse_row(block[begin:limit]) if block[limit - 1] == ord("\n") else None
            if row is not None and row["step"] <= step:
                return start + limit
            limit = begin
    return 0


def parse_row(line: bytes | str) -> dict[str, Any] | None:
    """Return the row that a line of a recording holds, or `None` if it holds none.

    Example:

    ```python
    >>> parse_row('{"step": 3, "grad_norm": 0.5}'), parse_row('{"step": 3, "grad_n'), parse_row("[]")
    ({'step': 3, 'grad_norm': 0.5}, None, None)

    ```
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int and 1 <= row["step"] < 2**63 else None


def iter_rows(path: PathLike) -> Iterator[dict[str, Any]]:
    """Yield the rows of a recording in order, one at a time. Warn once if lines had to be skipped."""
    skipped = 0
    with Path(path).open("rb") as file:
        for line in file:
            if (row := parse_row(line)) is not None:
                yield row
            else:
                skipped += bool(line.strip())
    if skipped:
        logger.warning(f"{path}: skipped {skipped} line{'s that hold' if skipped > 1 else ' that holds'} no record.")


@dataclass
class Columns:
    """The rows of a recording as columns.

    Args:
        steps (`array[int]`): The recorded updates, ascending.
        values (`dict[str, array[float]]`): Key -> one value per recorded update, `nan` where the row has none.
        nonfinite (`dict[int, list[str]]`): Update -> the layers whose norm was not finite.
        growing_stacks (`list[str]`): Prefixes of blocks with different shapes, which are not compared.
    """

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: dict[str, array[float]] = field(default_factory=dict)
    nonfinite: dict[int, list[str]] = field(default_factory=dict)
    growing_stacks: list[str] = field(default_factory=list)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. A row of the last step is merged with it; an earlier step replaces the rows from there on."""
        step, last = row["step"], self.steps[-1] if self.steps else 0
        if step < last:  # resumed from an earlier checkpoint without truncating the recording
            self._cut(bisect_left(self.steps, step))
        if step != last:
            self.steps.append(step)
            for column in self.values.values():
                column.append(nan)
        for key, value in row.items():
            if key == "nonfinite" and isinstance(value, list) and value:
                self.nonfinite[step] = [str(each) for each in value]
            elif key == GROWING_STACKS and isinstance(value, list):
                self.growing_stacks = [str(each) for each in value]
            elif key != "step":
                for name, number in _numbers(key, value):
                    if name not in self.values:
                        self.values[name] = array("d", [nan]) * len(self.steps)
                    self.values[name][-1] = number

    def _cut(self, length: int) -> None:
        removed = self.steps[length:]
        del self.steps[length:]
        for column in self.values.values():
            del column[length:]
        for step in removed:
            self.nonfinite.pop(step, None)


def _numbers(key: str, value: Any) -> list[tuple[str, float]]:
    """Return the columns that a row's value belongs to: `key`, and `key/1`, `key/2`, ... for a list."""
    if isinstance(value, list):
        return [pair for i, each in enumerate(value) for pair in _numbers(f"{key}/{i}" if i else key, each)]
    is_number = type(value) is float or (type(value) is int and abs(value) < 2**63)
    return [(key, float(value))] if is_number else []


def read_columns(path: PathLike) -> Columns:
    """Read a recording into columns. Memory grows with the numbers in it, 8 bytes each."""
    columns = Columns()
    for row in iter_rows(path):
        columns.append(row)
    return columns


def find_gaps(steps: Sequence[int], every: int = 1, last: int | None = None) -> list[tuple[int, int]]:
    """Return the first and the last update of each gap in a recording.

    Args:
        steps (`Sequence[int]`): The recorded updates, ascending.
        every (`int`, defaults to 1): One of so many updates is recorded. An interval is a gap only if the intervals
            around it are shorter too, since a resumed run may record at other intervals.
        last (`int`, *optional*): The update up to which the recording should reach.

    Example:

    ```python
    >>> find_gaps([5, 6, 9, 10]), find_gaps([1, 11, 21], every=10), find_gaps([], last=4)
    ([(1, 4), (7, 8)], [], [(1, 4)])

    ```
    """
    points = [0, *steps] if last is None else [0, *steps, last + 1]
    lengths = [every, *(b - a for a, b in pairwise(points)), every]
    return [
        (a + 1, b - 1)
        for i, (a, b) in enumerate(pairwise(points), 1)
        if lengths[i] > max(every, lengths[i - 1], lengths[i + 1])
    ]


def describe_gaps(gaps: Sequence[tuple[int, int]]) -> str:
    """Return the gaps in a recording in words.

    Example:

    ```python
    >>> describe_gaps([(1, 4), (7, 7)])
    'updates 1 to 4, 7'

    ```
    """
    spans = [f"{first} to {last}" if first < last else str(first) for first, last in gaps]
    return f"updates {', '.join(spans[:4])}{', ...' if len(spans) > 4 else ''}"


# --- a run ---


class Series(NamedTuple):
    """Values over updates: `steps, values = run.losses`. A series without values is false."""

    steps: list[int] | array[int]
    values: list[float] | array[float]

    def __bool__(self) -> bool:
        return len(self.steps) > 0


def _series(pairs: Iterable[tuple[int, float]]) -> Series:
    pairs = list(pairs)
    return Series([step for step, _ in pairs], [value for _, value in pairs])


_EFFECTIVE_RATE = ("effective_learning_rate", "scheduled_lr")  # log keys of an optimizer with its own warmup
# Keys of an evaluation that are no result: how long it took.
_TIMINGS = re.compile(r"_(runtime|samples_per_second|steps_per_second|model_preparation_time|jit_compilation_time)$")


_LOWER_IS_BETTER = re.compile(r"loss|error|perplexity|(^|_)(wer|cer|ter|mse|mae|rmse|mape|nll)($|_)")
_TASK_METRIC = re.compile(
    "eval_(.*_)?(accuracy|f1|exact(_match)?|(sacre)?bleu|rouge-?[1L]|chrf|matthews_correlation|pearson|spearmanr?|"
    "(roc_)?auc|(mean_)?iou|wer|cer|map|mrr|ndcg|r2)"
)


class Evaluation(NamedTuple):
    """A metric, its value, and the update at which it was evaluated."""

    key: str
    value: float
    step: int


@dataclass(repr=False, eq=False)
class Run:
    """One run as columns. What was not recorded is missing: an empty series, a key that is not there, or `None`.

    Args:
        folder (`Path`): The run's folder, or the file that was read.
        log_history (`list[dict]`): The entries of the Trainer's log, each with an integer `step`.
        recording (`Columns`): The recorded gradient norms.
        settings (`dict`): Training arguments and the model's configuration by their own names.
        made_with (`dict`): Command, commit, versions and machine.
        state (`dict`): The rest of the Trainer's state.
        num_training_steps (`int`, *optional*): The number of updates that were planned.
        final_results (`dict`): The results that `save_metrics` wrote of the model that was kept.
        ended (`dict`): What [`write_run_end`] noted.
        unreadable (`int`): The number of log entries and values that were skipped because they hold no number.
    """

    folder: Path
    log_history: list[dict[str, Any]] = field(default_factory=list)
    recording: Columns = field(default_factory=Columns)
    settings: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    num_training_steps: int | None = None
    final_results: dict[str, float] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)
    unreadable: int = 0

    def __repr__(self) -> str:
        read = [f"{len(self.losses.steps)} losses", f"{len(self.layers)} layers recorded at {len(self.steps)} updates"]
        return f"<Run {self.name}: {self.status}; {', '.join(read)}>"

    @property
    def name(self) -> str:
        """The folder's name; for a checkpoint or a file, behind the name of the folder that holds it.

        Characters that cannot be printed, such as control characters, are replaced.
        """
        path = self.folder.resolve()
        if path.is_file() and path.name == TRAINER_STATE_FILE:
            path = path.parent
        name = f"{path.parent.name}/{path.name}" if re.fullmatch(r"checkpoint-\d+", path.name) else path.name
        return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)

    @property
    def stem(self) -> str:
        """The folder's name without its seed."""
        return re.sub(r"[-_.]seed[-_=]?\d+$", "", self.name)

    @property
    def seed(self) -> str:
        """The seed from the settings, else from the folder's name (`-seed3`), else `""`."""
        named = re.search(r"-seed(\d+)$", self.name)
        return str(self.settings.get("seed", named[1] if named else ""))

    def series(self, *keys: str) -> Series:
        """Return the logged values of the first of `keys` that the training log holds."""
        for key in keys:
            if found := _series((entry["step"], entry[key]) for entry in self.log_history if _is_number(entry, key)):
                return found
        return Series([], [])

    def recorded(self, key: str) -> Series:
        """Return the recorded values of `key`, without the updates at which it was not recorded."""
        column = self.recording.values.get(key, ())
        return _series(pair for pair in zip(self.steps, column, strict=False) if pair[1] == pair[1])

    @cached_property
    def losses(self) -> Series:
        """The logged training loss, else the recorded one. A loss that is not finite is a value."""
        return self.series("loss") or self.recorded("loss")

    @cached_property
    def scheduled_rates(self) -> Series:
        """The logged learning rate of the schedule, by the update that it was used for."""
        logged = self.series("learning_rate")
        # Until transformers 4.5x the Trainer logged the rate after the scheduler's step, which is the next update's.
        late = bool(self.state) and "best_global_step" not in self.state
        return Series([step + late for step in logged.steps], logged.values)

    @cached_property
    def learning_rates(self) -> Series:
        """The effective learning rate over updates: recorded, else logged, else the schedule's."""
        return self.recorded("learning_rate") or self.series(*_EFFECTIVE_RATE) or self.scheduled_rates

    @cached_property
    def total_norm(self) -> Series:
        """The norm of the whole gradient before clipping: recorded, else as the Trainer logged it."""
        return self.recorded(LOG_PREFIX) or self.series(LOG_PREFIX)

    @property
    def steps(self) -> array[int]:
        """The recorded updates, which the columns in `norms` belong to."""
        return self.recording.steps

    @cached_property
    def norms(self) -> dict[str, array[float]]:
        """Layer -> its recorded gradient norm at each of `steps`; `nan` where it is missing or was not finite."""
        prefix = f"{LOG_PREFIX}/"
        columns = self.recording.values.items()
        return {key.removeprefix(prefix): values for key, values in columns if key.startswith(prefix)}

    @property
    def nonfinite(self) -> dict[int, list[str]]:
        """Update -> the layers whose gradient norm was not finite."""
        return self.recording.nonfinite

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """The first and the last update of each gap in the recorded gradient norms."""
        recorded = sorted({*self.recorded(LOG_PREFIX).steps, *self.nonfinite})
        return find_gaps(recorded, _integer(self.settings.get("grad_norm_steps")) or 1)

    @property
    def layers(self) -> list[str]:
        """The recorded layers in the model's order, such as `encoder.layer.0`."""
        return list(self.norms)

    @cached_property
    def stacks(self) -> dict[str, list[str]]:
        """Prefix -> recorded blocks of equal shapes, from first to last."""
        return find_stacks(self.layers, self.settings.get("growing_stacks") or ())

    @property
    def blocks(self) -> list[str]:
        """The blocks of the deepest stack in order, such as `encoder.layer.0`."""
        return max(self.stacks.values(), key=len, default=[])

    def ratio(self) -> Series:
        """Return the last block's gradient norm over the first's: the highest of all stacks, `inf` over a norm of 0."""
        highest: dict[int, float] = {}
        for first, *_, last in self.stacks.values():
            for step, below, above in zip(self.steps, self.norms[first], self.norms[last], strict=True):
                if below >= 0 and above > 0:  # neither is nan
                    highest[step] = max(highest.get(step, 0.0), above / below if below else inf)
        return _series(sorted(highest.items()))

    @cached_property
    def evaluations(self) -> dict[str, Series]:
        """Metric of the evaluations, such as `eval_loss`, -> its values over updates."""
        keys = {key: None for entry in self.log_history for key in entry if _is_metric(key)}
        found = {key: self.series(key) for key in keys}
        return {key: series for key, series in found.items() if series}

    @cached_property
    def updates(self) -> int:
        """The last update that anything is known of."""
        logged = (entry["step"] for entry in self.log_history)
        return max(_integer(self.state.get("global_step")), *self.steps[-1:], *logged, 0)

    @property
    def end(self) -> str:
        """How the run ended, as far as there is evidence.

        `"finished"`, `"stopped early"` (a callback ended it), `"interrupted"`, `"unfinished"` (recorded by this
        package and no end was noted: it is still running, or was killed), `"checkpoint"` (how it continued is not in
        the file), or `"unknown"` (the planned number of updates is not known).
        """
        if self.num_training_steps and self.updates >= self.num_training_steps:
            return "finished"
        if self.ended and _integer(self.ended.get("step")) >= self.updates:
            return str(self.ended.get("reason"))
        if self._was_stopped:
            return "stopped early"
        if self.num_training_steps is None:
            return "unknown"
        recorded = self.made_with or self.steps
        return "unfinished" if recorded and not self.folder.name.startswith("checkpoint-") else "checkpoint"

    @property
    def _was_stopped(self) -> bool:
        """Whether the log has the closing entry, or a saved callback had asked for the end of training."""
        if any("train_runtime" in entry and entry["step"] >= self.updates for entry in self.log_history):
            return True
        if self.updates > _integer(self.state.get("global_step")):
            return False
        callbacks = _table(self.state.get("stateful_callbacks"))
        control = _table(_table(callbacks.get("TrainerControl")).get("args"))
        return control.get("should_training_stop") is True

    @property
    def status(self) -> str:
        """How the run ended, in words with the number of updates."""
        of = f"{self.updates} of {self.num_training_steps}"
        if self.end == "interrupted" and (signal := self.ended.get("signal")):
            return f"stopped on {signal} at update {of}, to be resumed"
        return {
            "finished": f"finished, {self.updates} updates",
            "stopped early": f"stopped early at update {of}",
            "interrupted": f"interrupted at update {of}",
            "unfinished": f"unfinished: {of} updates (still running, or killed)",
            "checkpoint": f"checkpoint at update {of}",
        }.get(self.end, f"{self.updates} updates")

    @cached_property
    def metric(self) -> str | None:
        """The evaluation metric that matters.

        The metric that selected the best model, else the first of the usual task metrics, else `eval_loss`.
        """
        chosen = str(self.settings.get("metric_for_best_model"))
        for key in (chosen, f"eval_{chosen}"):
            if key in self.evaluations:
                return key
        best = self.state.get("best_metric")
        if isinstance(best, (int, float)):
            for key, series in self.evaluations.items():
                if any(isclose(value, best, rel_tol=1e-9) for value in series.values):
                    return key
        loss = [key for key in self.evaluations if key == "eval_loss"]
        return next(iter([*self._usual_metrics, *loss, *self.evaluations]), None)

    @property
    def task_metric(self) -> str | None:
        """`metric` unless that is the loss; then the first of the usual task metrics, if one was evaluated."""
        return next(iter(self._usual_metrics), None) if self.metric == "eval_loss" else self.metric

    @property
    def _usual_metrics(self) -> list[str]:
        task = [key for key in self.evaluations if _TASK_METRIC.fullmatch(key)]
        # Not one of a single class or a subset: those have a longer name.
        return sorted(task, key=lambda key: (key.count("_") > 1, "overall" not in key))

    def greater_is_better(self, key: str) -> bool:
        """Return whether higher values of a metric are better: by the settings, else by its name."""
        told = self.settings.get("greater_is_better")
        if isinstance(told, bool) and key == self.metric and self.settings.get("metric_for_best_model"):
            return told
        return not _LOWER_IS_BETTER.search(key)

    def best(self, key: str | None = None) -> Evaluation | None:
        """Return the best evaluation by `key`, which defaults to `metric`.

        If the Trainer noted its best checkpoint by that metric, it is the evaluation of that checkpoint.
        """
        key = key or self.metric
        known = [pair for pair in zip(*self.evaluations.get(key or "", ((), ())), strict=True) if pair[1] == pair[1]]
        if key is None or not known:
            return None
        at_best = [pair for pair in known if pair[0] == self.best_step] if key == self.metric else []
        pick = max if self.greater_is_better(key) else min
        step, value = at_best[0] if at_best else pick(known, key=lambda pair: pair[1])
        return Evaluation(key, value, step)

    def last(self, key: str | None = None) -> Evaluation | None:
        """Return the last evaluation during training by `key`, which defaults to `metric`."""
        key = key or self.metric
        series = self.evaluations.get(key or "")
        if key is None or not series:
            return None
        # A further evaluation at the last update is of the model that was loaded after training.
        first = list(series.steps).index(series.steps[-1])
        return Evaluation(key, series.values[first], series.steps[first])

    @property
    def best_step(self) -> int | None:
        """The update of the best checkpoint, if the Trainer noted one."""
        if not isinstance(self.state.get("best_metric"), (int, float)):
            return None
        named = re.search(r"checkpoint-(\d+)", str(self.state.get("best_model_checkpoint")))
        return _integer(self.state.get("best_global_step")) or (int(named[1]) if named else None)

    def results(self) -> dict[str, float]:
        """Return the last training loss and each metric of the model that was kept.

        That is the best checkpoint's if the Trainer loaded it at the end, else the last evaluation's. What
        `save_metrics` wrote after training replaces both.
        """
        found = {"loss": self.losses.values[-1]} if self.losses else {}
        loaded = self.best_step if self.settings.get("load_best_model_at_end") else None
        for key, series in self.evaluations.items():
            at_best = [value for step, value in zip(*series, strict=True) if step == loaded]
            found[key] = at_best[0] if at_best else series.values[-1]
        return found | self.final_results


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _integer(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and value == value and abs(value) < inf else 0


def _is_metric(key: str) -> bool:
    return key.startswith("eval_") and not _TIMINGS.search(key)


def _is_number(entry: Mapping[str, Any], key: str) -> bool:
    return isinstance(entry.get(key), (int, float)) and not isinstance(entry[key], bool)


# --- reading ---


def _read_json(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    if content.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull`.")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected one JSON object.")
    return found


def _read_optional(path: Path) -> dict[str, Any]:
    """Return the content of a file that a run can be read without, or `{}`; warn if it is not valid."""
    try:
        return _read_json(path) if path.exists() else {}
    except (ValueError, OSError) as error:
        logger.warning(f"{error} The run is read without it.")
        return {}


def _checkpoints(folder: Path, run_id: str | None) -> list[Path]:
    """Return the states in the checkpoints of this run, the latest last; a former run's in the same folder not."""
    found: dict[int, Path] = {}
    for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_FILE}"):
        number = path.parent.name.rpartition("-")[2]
        if number.isdigit() and run_id in (None, read_run_settings(path.parent).get("run_id", run_id)):
            found[int(number)] = path
    return [found[number] for number in sorted(found)]


def _read_state(folder: Path, run_id: str | None) -> dict[str, Any]:
    """Return the Trainer's state that went furthest: the folder's own, or that of its last checkpoint."""
    own = folder / TRAINER_STATE_FILE
    paths = [*([own] if own.exists() else []), *_checkpoints(folder, run_id)[-1:]]
    return max(map(_read_json, paths), key=lambda state: _integer(state.get("global_step")), default={})


def _clean_log(path: Path, state: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Return the entries that have a step, and the number of entries and values that hold no number."""
    if not isinstance(state.get("log_history"), list):
        raise ValueError(f"{path} holds no log_history, so it is not the state of a Trainer.")
    entries, skipped = [], 0
    for entry in state["log_history"]:
        if isinstance(entry, dict) and _is_number(entry, "step") and isfinite(entry["step"]):
            values = [entry[key] for key in ("loss", "learning_rate") if key in entry]
            skipped += sum(value is None or isinstance(value, str) for value in values)
            entries.append({**entry, "step": int(entry["step"])})
        else:
            skipped += 1
    return entries, skipped


def _recording_in(folder: Path) -> Path | None:
    """Return the recording in `folder`: under its usual name, else any `.jsonl` file that begins like one."""
    usual = folder / GRADIENT_NORMS_FILE
    return usual if usual.exists() else next(filter(_is_recording, sorted(folder.glob("*.jsonl"))), None)


def _is_recording(path: Path) -> bool:
    with path.open("rb") as file:
        row = parse_row(file.readline(_BLOCK))
    return row is not None and LOG_PREFIX in row


def _read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings by their names, and all that `run_settings.json` holds."""
    described = read_run_settings(folder)
    settings: dict[str, Any] = {}
    for name in () if described else ("config.json", "settings.json"):  # of runs that wrote no settings of their own
        settings |= _read_optional(folder / name)
    settings |= _table(described.get("model_config")) | _table(described.get("training_args"))
    if "num_warmup_steps" in described:
        settings["num_warmup_steps"] = described["num_warmup_steps"]
    unused = described.get("unused_arguments") or ()
    return {name: value for name, value in settings.items() if name not in unused}, described


def read_run(folder: PathLike, state: Mapping[str, Any] | None = None) -> Run:
    """Read one run.

    Args:
        folder (`str` or `os.PathLike`): The output folder of a run, one of its checkpoints, a `trainer_state.json`
            under any name, or a recording (`.jsonl`).
        state (`Mapping[str, Any]`, *optional*): The Trainer's state, if it is at hand, instead of the saved one.

    Raises:
        `ValueError`: If there is nothing of a run, or a file of it is not valid.
    """
    path = Path(folder)
    if state is None and not path.exists():
        raise ValueError(f"{path}: there is no such file or folder.{_suggestion(path)}")
    folder = path.parent if path.is_file() else path
    settings, described = _read_settings(folder)
    made_with, run_id = _table(described.get("made_with")), described.get("run_id")
    recording = _recording_in(folder)
    if path.is_file() and path.suffix == ".jsonl":
        recording, state = path, {}
    elif path.is_file():
        recording = recording if path.name == TRAINER_STATE_FILE else None
        state = _read_json(path)
    at_hand = state is not None
    state = dict(_read_state(folder, run_id) if state is None else state)
    if not state and recording is None:
        raise ValueError(_no_run(folder))
    entries, skipped = _clean_log(path, state) if state else ([], 0)
    state.pop("log_history", None)
    final = {} if at_hand else _read_optional(folder / RESULTS_FILE)
    columns = read_columns(recording) if recording else Columns()
    if columns.growing_stacks:
        settings[GROWING_STACKS] = columns.growing_stacks
    planned = [described.get("num_training_steps"), state.get("max_steps"), settings.get("max_steps")]
    run = Run(
        path,
        entries,
        columns,
        settings,
        made_with,
        state,
        next((count for count in map(_integer, planned) if count > 0), None),
        {key: final[key] for key in final if _is_number(final, key) and _is_metric(key)},
        _table(described.get("ended")),
        skipped,
    )
    if not run.updates and recording is None and not at_hand:
        raise ValueError(f"{path} holds no update: training had not begun when it was saved.")
    return run


def _no_run(folder: Path) -> str:
    return f"{folder / TRAINER_STATE_FILE} is missing: expected the folder of a run, or a folder of runs."


def is_run(folder: Path) -> bool:
    """Return whether `folder` is the folder of a run, rather than a folder that holds runs."""
    states = (folder / TRAINER_STATE_FILE, *_checkpoints(folder, None))
    return any(state.exists() for state in states) or _recording_in(folder) is not None


def by_number(text: str) -> list[str | float]:
    """Return a sorting key that takes numbers in text as numbers: lr5e-4 before lr1e-3, seed2 before seed10."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)", text)
    return [float(each) if i % 2 else each for i, each in enumerate(parts)]


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the run folders in `folder` at any depth, in the order of their names; a run is not searched further."""
    if is_run(folder):
        yield folder
        return
    inside = [path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(inside, key=lambda path: by_number(path.name)):
        yield from _run_folders(path)


def find_runs(runs: Any) -> list[Run]:
    """Return the runs that `runs` names, none twice, which is what every function of `hf_warmup.report` accepts.

    Args:
        runs (`str`, `os.PathLike`, [`Run`], a Trainer, or a list of these): A folder of any depth, a checkpoint, a file
            of a run, a run that was read, or a Trainer with what it has logged so far.

    Raises:
        `ValueError`: If nothing at all can be read. If some runs can be read, the others are named in a warning.
    """
    found: dict[Path | int, Run] = {}
    problems: list[Exception] = []
    for each in [runs] if isinstance(runs, (str, os.PathLike, Run)) or hasattr(runs, "state") else runs:
        if isinstance(each, (str, os.PathLike)):
            for path in list(_run_folders(Path(each))) or [Path(each)]:
                try:
                    if path.resolve() not in found:
                        found[path.resolve()] = read_run(path)
                except (ValueError, OSError) as error:
                    problems.append(error)
        elif isinstance(each, Run):
            found[id(each)] = each
        else:  # a Trainer, whose log may not have been saved yet
            if (recorder := getattr(each, "gradient_norm_recorder", None)) is not None:
                recorder.flush()
            found[id(each)] = read_run(each.args.output_dir, vars(each.state))
    if problems and not found:
        raise problems[0]
    for problem in problems:
        logger.warning(f"Left out: {problem}")
    return list(found.values())


def _suggestion(path: Path) -> str:
    from .._validation import closest

    parent = path.parent
    close = closest(path.name, [each.name for each in parent.iterdir()]) if parent.is_dir() else None
    return f" Did you mean {parent / close}?" if close else ""
