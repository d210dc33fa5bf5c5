"""The files of a run folder, and what is read of them: settings, log, gradient norms, seeds of one arm."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from math import floor, isfinite, log10
from os.path import commonpath
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..norms import GRADIENT_NORMS_FILE, LOG_PREFIX, read_gradient_norms


logger = logging.getLogger(__name__)


SETTINGS_FILE = "run_settings.json"
PACKAGES = ("hf-warmup", "torch", "transformers", "accelerate", "datasets")


def environment() -> dict[str, str]:
    """Versions, commit and machine of this process."""
    import torch

    described = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # a checkout that is not installed has no version
            described[name] = version(name)
    described["python"] = platform.python_version()
    try:
        git = ["git", "rev-parse", "--short", "HEAD"]
        described["commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        pass
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        threads = torch.get_num_threads()
        device = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    described["machine"] = f"{platform.system()} {platform.machine()}, {device}"
    return described


def command_line(argv: list[str]) -> str:
    """`argv` as one would type it, with nothing secret in it.

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


# What makes a resumed run another run; where and how it logs does not.
_DECISIVE = re.compile(
    "^optim|learning_rate|weight_decay|^adam_|^lr_scheduler|warmup|train_batch|accumulation|train_epochs|"
    "^max_steps|^max_train_steps|^max_grad_norm|^seed"
)


def read_run_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What [`write_run_settings`] wrote, or `{}`."""
    try:
        described = json.loads((Path(folder) / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or not ours to read
        return {}
    return described if isinstance(described, dict) else {}


def copy_run_settings(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """From a run's folder to its new checkpoint, and back where a run is resumed: a later attempt has its own.

    Nothing happens where `source` has none.
    """
    path = Path(source) / SETTINGS_FILE
    if path.is_file():
        Path(target).mkdir(parents=True, exist_ok=True)
        (Path(target) / SETTINGS_FILE).write_bytes(path.read_bytes())


def _changed(before: Mapping[str, Any], training_args: Mapping[str, Any]) -> list[str]:
    """`"learning_rate was 0.001, is 0.002"` for each decisive argument that differs."""
    now = json.loads(json.dumps(dict(training_args), default=str))
    keys = [key for key in now if _DECISIVE.search(key) and key in before and before[key] != now[key]]
    return [f"{key} was {before[key]}, is {now[key]}" for key in keys]


def write_run_settings(
    folder: str | os.PathLike[str],
    training_args: Mapping[str, Any],
    model_config: Mapping[str, Any],
    num_training_steps: int,
    num_warmup_steps: int,
    resumed: bool = False,
) -> None:
    """Write `run_settings.json` into the output folder; a run that is resumed with other settings says so.

    Args:
        folder (`str` or `os.PathLike`): The run's output folder.
        training_args (`Mapping[str, Any]`): As from `args.to_dict()`, which masks tokens.
        model_config (`Mapping[str, Any]`): As from `model.config.to_dict()`.
        num_training_steps (`int`): Updates that the run is planned to take.
        num_warmup_steps (`int`): Updates of warmup that were asked for, a ratio resolved.
        resumed (`bool`, defaults to `False`): Whether the run goes on from a checkpoint, whose settings
            [`copy_run_settings`] has brought to `folder`.
    """
    notebook = "ipykernel" in sys.modules  # whose command line says nothing about the run
    described = {
        "made_with": environment() | ({} if notebook else {"command": command_line(sys.orig_argv)}),
        "num_training_steps": num_training_steps,
        "num_warmup_steps": num_warmup_steps,
        "training_args": dict(training_args),
        "model_config": dict(model_config),
    }
    before = read_run_settings(folder).get("training_args", {}) if resumed else {}
    if changed := _changed(before, described["training_args"]):
        logger.warning(
            f"The run is resumed with other settings: {'; '.join(changed)}. Kept from the checkpoint: the optimizer's "
            "options (peak learning rate, weight decay, betas, the warmup of adam_warmup) and a schedule that follows "
            "a metric. New, from the second update on: the shape, warmup and length of any other schedule."
        )
    path = Path(folder) / SETTINGS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described, indent=1, default=str) + "\n", encoding="utf-8")


TRAINER_STATE_FILE, RESULTS_FILE = "trainer_state.json", "all_results.json"
# Of evaluations: how long they took is no result.
_TIMINGS = re.compile(r"_(runtime|samples_per_second|steps_per_second|model_preparation_time)$")


@dataclass(frozen=True)
class Run:
    """One run folder, read.

    Args:
        folder (`Path`): Where it is.
        log_history (`list[dict]`): The Trainer's log, an entry a logged update or evaluation.
        gradient_norms (`list[dict]`): As from [`~hf_warmup.gradient_norms.read_gradient_norms`].
        settings (`dict`): Training arguments and the model's configuration, by their own names; what is not known is
            not in it.
        made_with (`dict`): Command, commit, versions and machine, where they were written down.
        global_step (`int`): Updates by the Trainer's count, as far as it was saved.
        num_training_steps (`int`, *optional*): Updates that it was planned to take.
        ended_at (`int`, *optional*): The update at which its program saved the state itself, behind the training.
        last_evaluation (`dict`): What `save_metrics` wrote of the model that was kept.
    """

    folder: Path
    log_history: list[dict[str, Any]]
    gradient_norms: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    global_step: int = 0
    num_training_steps: int | None = None
    ended_at: int | None = None
    last_evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def arm(self) -> str:
        """The folder's name without its seed."""
        return re.sub(r"-seed\d+$", "", self.name)

    @property
    def seed(self) -> str:
        """Of the settings, else of the folder's name; empty where neither says it."""
        named = re.search(r"-seed(\d+)$", self.name)
        return str(self.settings.get("seed", named[1] if named else ""))

    def series(self, *keys: str) -> tuple[list[int], list[float]]:
        """Updates and values of the first of `keys` that the training log holds."""
        key = next((key for key in keys if any(key in entry for entry in self.log_history)), keys[0])
        entries = [entry for entry in self.log_history if key in entry]
        return [entry["step"] for entry in entries], [entry[key] for entry in entries]

    @cached_property
    def layers(self) -> list[str]:
        """Every recorded group, in the model's order, such as `encoder.layer.0`."""
        keys = {key: None for record in self.gradient_norms for key in record if key.startswith(f"{LOG_PREFIX}/")}
        return [key.removeprefix(f"{LOG_PREFIX}/") for key in keys]

    @cached_property
    def blocks(self) -> list[str]:
        """The keys of the numbered layers in order, such as `grad_norm/encoder.layer.0`; of several stacks the
        deepest."""
        stacks: dict[str, dict[int, str]] = {}
        for layer in self.layers:
            if numbered := re.fullmatch(r"(.*?)(\d+)", layer):
                stacks.setdefault(numbered[1], {})[int(numbered[2])] = f"{LOG_PREFIX}/{layer}"
        deepest = max(stacks.values(), key=len, default={})
        return [deepest[number] for number in sorted(deepest)]

    def ratio(self) -> tuple[list[int], list[float]]:
        """Updates, and the last block's gradient norm over the first's."""
        if len(self.blocks) < 2:
            return [], []
        first, last = self.blocks[0], self.blocks[-1]
        records = [record for record in self.gradient_norms if record.get(first) and record.get(last)]
        return [record["step"] for record in records], [record[last] / record[first] for record in records]

    def total_norm(self) -> tuple[list[int], list[float]]:
        """Updates, and the norm of the whole gradient before clipping: recorded, else as the Trainer logged it."""
        if not self.gradient_norms:
            return self.series(LOG_PREFIX)
        records = [record for record in self.gradient_norms if record.get(LOG_PREFIX)]
        return [record["step"] for record in records], [record[LOG_PREFIX] for record in records]

    @cached_property
    def updates(self) -> int:
        """The last update that anything is known of."""
        entries = [*self.gradient_norms[-1:], *self.log_history]
        return max([self.global_step, *(entry.get("step", 0) for entry in entries)])

    @property
    def cut_short(self) -> bool:
        """Whether it was killed: it made fewer updates than planned, and never came to save its state at the end."""
        return self.updates < (self.num_training_steps or 0) and self.ended_at != self.updates

    @property
    def status(self) -> str:
        """`finished`, `stopped itself` (a callback ended it early) or `cut short`, with the number of updates."""
        if self.num_training_steps is None:
            return f"{self.updates} updates"
        if self.cut_short:
            return f"cut short, {self.updates} of {self.num_training_steps} updates"
        if self.updates < self.num_training_steps:
            return f"stopped itself at update {self.updates} of {self.num_training_steps}"
        return f"finished, {self.updates} updates"

    def results(self) -> dict[str, float]:
        """The last logged training loss and the last value of each evaluation metric."""
        found: dict[str, float] = {}
        for entry in [*self.log_history, self.last_evaluation]:
            found |= {
                key: value
                for key, value in entry.items()
                if isinstance(value, (int, float))
                and (key == "loss" or key.startswith("eval_"))
                and not _TIMINGS.search(key)
            }
        return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected one JSON object.")
    return content


def _read_state(folder: Path) -> tuple[dict[str, Any] | None, int | None]:
    """The Trainer's state that went furthest, the folder's own or its last checkpoint's; the update of its own.

    `save_state`, behind `train`, writes the folder's own, and so does the end of an Accelerate loop; a run that was
    killed has checkpoints only.
    """
    checkpoints = {
        int(path.parent.name.rpartition("-")[2]): path
        for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_FILE}")
        if path.parent.name.rpartition("-")[2].isdigit()
    }
    last = [checkpoints[max(checkpoints)]] if checkpoints else []
    own = [_read_json(folder / TRAINER_STATE_FILE)] if (folder / TRAINER_STATE_FILE).exists() else []
    states = [*own, *map(_read_json, last)]
    furthest = max(states, key=lambda state: state.get("global_step", 0), default=None)
    return furthest, own[0].get("global_step") if own else None


def _read_last_evaluation(folder: Path) -> dict[str, Any]:
    """Of the model that was kept, as `save_metrics` writes it: the log's last may be of another."""
    path = folder / RESULTS_FILE
    return {key: value for key, value in _read_json(path).items() if key.startswith("eval_")} if path.exists() else {}


def _read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings by their names, and the whole of what was written down."""
    described = _read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).exists() else {}
    settings: dict[str, Any] = {}
    for name in ("config.json", "settings.json"):  # of runs that wrote no settings of their own
        if not described and (folder / name).exists():
            settings |= _read_json(folder / name)
    settings |= described.get("model_config", {}) | described.get("training_args", {})
    if "num_warmup_steps" in described:
        settings["num_warmup_steps"] = described["num_warmup_steps"]
    return settings, described


def read_run(folder: str | Path, state: Mapping[str, Any] | None = None) -> Run:
    """Read a run folder.

    Args:
        folder (`str` or `Path`): A Trainer's output folder.
        state (`Mapping[str, Any]`, *optional*): The Trainer's state, where it is still at hand, instead of the saved
            one.

    Raises:
        `ValueError`: If there is nothing of a run in it, or a file of it is no valid JSON.
    """
    folder, at_hand = Path(folder), state is not None
    state, ended_at = (state, state.get("global_step")) if at_hand else _read_state(folder)
    if state is None and not (folder / GRADIENT_NORMS_FILE).exists():
        raise ValueError(
            f"{folder / TRAINER_STATE_FILE} is missing: expected the folder of a run, or one that holds run folders."
        )
    recorded = read_gradient_norms(folder) if (folder / GRADIENT_NORMS_FILE).exists() else []
    settings, described = _read_settings(folder)
    state = state or {}
    return Run(
        folder,
        state.get("log_history", []),
        recorded,
        settings,
        described.get("made_with", {}),
        state.get("global_step", 0),
        described.get("num_training_steps") or state.get("max_steps") or settings.get("max_steps"),
        ended_at,
        {} if at_hand else _read_last_evaluation(folder),
    )


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run's, and not one that holds runs."""
    return (
        (folder / GRADIENT_NORMS_FILE).exists()
        or any(folder.glob(TRAINER_STATE_FILE))
        or any(folder.glob(f"checkpoint-*/{TRAINER_STATE_FILE}"))
    )


def read_runs(folder: str | Path) -> list[Run]:
    """Read every run folder directly inside `folder`, in the order of their names, so that each keeps its colour."""
    folders = [path for path in Path(folder).iterdir() if path.is_dir() and is_run(path)]
    return [read_run(path) for path in sorted(folders, key=_by_number)]


def _by_number(folder: Path) -> list[str | float]:
    """A folder's name with its numbers as such: lr5e-4 before lr1e-3, seed2 before seed10."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)", folder.name)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs of `folders`: each a run's, or one that holds run folders; none twice.

    Raises:
        `ValueError`: For a folder that is neither.
    """
    runs: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder.")
        found = [] if is_run(folder) else read_runs(folder)
        for run in found or [read_run(folder)]:  # which says what is missing
            runs.setdefault(run.folder.resolve(), run)
    return list(runs.values())


# What every run has and no reader compares.
_NO_SETTINGS = {
    "output_dir", "logging_dir", "run_name", "seed", "data_seed", "local_rank", "_name_or_path", "architectures",
    "transformers_version", "project", "trackio_space_id", "hub_model_id", "num_training_steps",
}  # fmt: skip
MAIN_SETTINGS = (
    "model_type", "norm_placement", "num_hidden_layers", "hidden_size", "optim", "optim_args", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_type", "warmup_steps", "num_warmup_steps", "max_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16",
)  # fmt: skip


def known_settings(run: Run) -> dict[str, str]:
    """Settings as text; lists and tables have no place in a cell, and the resolved warmup's length stands for both."""
    resolved = {"warmup_steps", "warmup_epochs"} if "num_warmup_steps" in run.settings else set()
    return {
        key: f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in run.settings.items()
        if key not in _NO_SETTINGS | resolved and not isinstance(value, (list, dict))
    }


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings in which runs that know them differ, the main ones first."""
    known = [known_settings(run) for run in runs]
    names = dict.fromkeys(key for settings in known for key in (*MAIN_SETTINGS, *sorted(settings)))
    return [key for key in names if len({settings[key] for settings in known if key in settings}) > 1]


def shared_settings(runs: Sequence[Run]) -> dict[str, str]:
    """The main settings that every run which knows them has."""
    found = {key: {known_settings(run)[key] for run in runs if key in known_settings(run)} for key in MAIN_SETTINGS}
    return {key: min(values) for key, values in found.items() if len(values) == 1 and values != {"None"}}


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Arm -> its seeds, in the order of `runs`; arms of one name in different folders are kept apart."""
    runs = list(runs)
    parents: dict[str, set[Path]] = {}
    for run in runs:
        parents.setdefault(run.arm, set()).add(run.folder.resolve().parent)
    arms: dict[str, list[Run]] = {}
    for run in runs:
        parent = f"{run.folder.resolve().parent.name}/" if len(parents[run.arm]) > 1 else ""
        arms.setdefault(parent + run.arm, []).append(run)
    return arms


def names_of(runs: Iterable[Run]) -> dict[Path, str]:
    """Folder -> what the run is called: the folder's name, behind its parent's where another arm has the same."""
    return {run.folder: arm + run.name.removeprefix(run.arm) for arm, seeds in by_arm(runs).items() for run in seeds}


def common_name(folders: Iterable[str | Path]) -> str:
    """What `folders` are called together: the name of the one folder, or of the nearest that holds them all."""
    return Path(commonpath([Path(folder).resolve() for folder in folders])).name or "Runs"


def label(arm: str) -> str:
    """`post-adamw-none-lr2e-3` as people write it; any other folder's name as it is.

    Example:

    ```python
    >>> label("post-adamw-none-lr2e-3")
    'Post-LN, adamw, no warmup, lr 2e-3'

    ```
    """
    placement, *rest = re.split(r"-(?=[a-z])", arm)
    if placement not in ("post", "pre") or not rest:
        return arm
    words = ["no warmup" if part == "none" else re.sub(r"^lr(?=\d)", "lr ", part) for part in rest]
    return ", ".join([f"{placement.capitalize()}-LN", *words])


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± sample standard deviation`; of values that are not all finite the mean alone.

    Example:

    ```python
    >>> mean_and_spread([0.8, 0.82])
    '0.810 ± 0.014'

    ```
    """
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and all(map(isfinite, values)) else ""
    return f"{mean(values):.{digits}f}{spread}"


def decimals(values: Iterable[float]) -> int:
    """Decimals of a column of numbers: three, fewer for hundreds of updates, more for small losses.

    Example:

    ```python
    >>> decimals([0.5, 0.25]), decimals([300, 197]), decimals([4e-4, 2e-4])
    (3, 1, 6)

    ```
    """
    largest = max((abs(value) for value in values if isfinite(value) and value), default=1.0)
    power = floor(log10(largest))
    return min(6, max(0, 3 - max(0, power) + max(0, -1 - power)))
