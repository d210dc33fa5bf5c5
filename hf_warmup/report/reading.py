"""Run folders in: the training log, the recorded gradient norms, and the settings.

A run folder is a Trainer's output folder, finished or cut short: `trainer_state.json` stands in it or in its last
checkpoint, beside `gradient_norms.jsonl` and `run_settings.json`. Folders that differ only in a trailing `-seed<n>` are
seeds of one arm. Nothing is unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..gradient_norms import FILE_NAME, KEY, read_gradient_norms
from ..run_settings import FILE_NAME as SETTINGS_FILE


STATE_FILE, RESULTS_FILE = "trainer_state.json", "all_results.json"
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
        keys = {key: None for record in self.gradient_norms for key in record if key.startswith(f"{KEY}/")}
        return [key.removeprefix(f"{KEY}/") for key in keys]

    @cached_property
    def blocks(self) -> list[str]:
        """The keys of the numbered layers in order, such as `grad_norm/encoder.layer.0`; of several stacks the
        deepest."""
        stacks: dict[str, dict[int, str]] = {}
        for layer in self.layers:
            if numbered := re.fullmatch(r"(.*?)(\d+)", layer):
                stacks.setdefault(numbered[1], {})[int(numbered[2])] = f"{KEY}/{layer}"
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
            return self.series(KEY)
        records = [record for record in self.gradient_norms if record.get(KEY)]
        return [record["step"] for record in records], [record[KEY] for record in records]

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
        for path in folder.glob(f"checkpoint-*/{STATE_FILE}")
        if path.parent.name.rpartition("-")[2].isdigit()
    }
    last = [checkpoints[max(checkpoints)]] if checkpoints else []
    own = [_read_json(folder / STATE_FILE)] if (folder / STATE_FILE).exists() else []
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
    if state is None and not (folder / FILE_NAME).exists():
        raise ValueError(
            f"{folder / STATE_FILE} is missing: expected the folder of a run, or one that holds run folders."
        )
    recorded = read_gradient_norms(folder) if (folder / FILE_NAME).exists() else []
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
        (folder / FILE_NAME).exists() or any(folder.glob(STATE_FILE)) or any(folder.glob(f"checkpoint-*/{STATE_FILE}"))
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
