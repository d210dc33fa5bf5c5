"""Several runs side by side: which are seeds of one configuration, what the configurations are called, what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from math import floor, isfinite, log10
from os.path import commonpath
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .run import Run, by_number, find_runs


# Settings that do not change what is learned: names, places, seeds, and how a run logs, saves and evaluates.
_INCIDENTAL = re.compile(
    "seed$|_dir$|^(log|save|hub|eval|report|ddp|dataloader|tpu|trackio|do|include|load_best|greater|metric_for)_|"
    "^(run_name|local_rank|_name_or_path|architectures|transformers_version|project|push_to_hub|resume_from_checkpoint|"
    "report_to|disable_tqdm|overwrite_output_dir|use_cpu|num_training_steps|debug|_attn_implementation\\w*|"
    "enable_jit_checkpoint|skip_memory_metrics|prediction_loss_only|restore_callback_states_from_checkpoint)$"
)
_NUMBERED = re.compile(r"(run|trial|job|exp(eriment)?|version)?[-_. ]?\d+", re.IGNORECASE)  # names that say nothing
MAIN_SETTINGS = (
    "model_type", "norm_placement", "num_hidden_layers", "hidden_size", "optim", "optim_args", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_type", "warmup_steps", "num_warmup_steps", "max_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16",
)  # fmt: skip


def known_settings(run: Run) -> dict[str, str]:
    """Return the settings that matter as text, without lists and tables. The resolved length of the warmup replaces
    the arguments that it was resolved from."""
    resolved = {"warmup_steps", "warmup_epochs"} if "num_warmup_steps" in run.settings else set()
    return {
        key: f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in run.settings.items()
        if key not in resolved and not _INCIDENTAL.search(key) and not isinstance(value, (list, dict))
    }


def settings_text(run: Run, keys: Iterable[str]) -> str:
    """Return settings of a run as `key=value, key=value`."""
    known = known_settings(run)
    return ", ".join(f"{key}={known[key]}" for key in keys if key in known)


def differing_settings(runs: Any) -> list[str]:
    """Return the names of the settings in which runs that have them differ, the main ones first."""
    known = [known_settings(run) for run in find_runs(runs)]
    names = dict.fromkeys(key for settings in known for key in (*MAIN_SETTINGS, *sorted(settings)))
    return [key for key in names if len({settings[key] for settings in known if key in settings}) > 1]


def independent_settings(runs: Any) -> list[str]:
    """Return [`differing_settings`] without those that follow from another, as the warmup's length from its type.

    Of fewer than four configurations, in which each setting follows from any other, all are returned.
    """
    known = [known_settings(run) for run in find_runs(runs)]
    columns = {key: [settings.get(key, "") for settings in known] for key in differing_settings(runs)}
    if len({*zip(*columns.values(), strict=True)}) < 4:
        return list(columns)
    for key in sorted(columns, key=lambda key: max(map(by_number, columns[key]))[0] == ""):  # words before numbers
        others = [columns[other] for other in columns if other != key]
        if any(len({*zip(other, columns[key], strict=True)}) == len({*other}) for other in others):
            del columns[key]
    return list(columns)


def shared_settings(runs: Any) -> dict[str, str]:
    """Return the main settings that are the same in every run that has them."""
    known = [known_settings(run) for run in find_runs(runs)]
    found = {key: {settings[key] for settings in known if key in settings} for key in MAIN_SETTINGS}
    return {key: min(values) for key, values in found.items() if len(values) == 1 and values != {"None"}}


def by_configuration(runs: Any) -> dict[str, list[Run]]:
    """Group runs that differ in the seed only: configuration -> its runs, in the order of `runs`.

    Runs with a recorded seed are grouped by their recorded settings, whatever their folders are called. Runs without
    one, and runs of the same settings and the same seed, are told apart by the folder's name without `-seed3`.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in find_runs(runs):
        groups.setdefault(_fingerprint(run), []).append(run)
    split: dict[tuple[str, ...], list[Run]] = {}
    for key, members in groups.items():
        repeated = len({run.seed for run in members}) < len(members)
        for run in members:
            split.setdefault(_by_folder(run) if repeated else key, []).append(run)
    return dict(zip(_configuration_names(list(split.values())), split.values(), strict=True))


def _by_folder(run: Run) -> tuple[str, ...]:
    return str(run.folder.resolve().parent), run.stem


def _fingerprint(run: Run) -> tuple[str, ...]:
    if "seed" not in run.settings:
        return _by_folder(run)
    settings = {key: value for key, value in run.settings.items() if not _INCIDENTAL.search(key)}
    return (json.dumps(settings, sort_keys=True, default=str),)


def _configuration_names(groups: Sequence[list[Run]]) -> list[str]:
    """Return a name for each group that no other has: of the folders, else by the settings that differ."""
    firsts = [members[0] for members in groups]
    keys = independent_settings(firsts)
    by_settings = [settings_text(run, keys) for run in firsts]
    parents = [{run.folder.resolve().parent for run in members} for members in groups]
    names, folders = [], []
    for members, own, said in zip(groups, parents, by_settings, strict=True):
        folders.append(min(own) / members[0].name)
        stems = {run.stem for run in members}
        if len(stems) == 1 and not (said and by_settings.count(said) == 1 and _NUMBERED.fullmatch(min(stems))):
            names.append(min(stems))
        elif len(own) == 1 and len(groups) > 1 and sum(bool(own & each) for each in parents) == 1:
            names.append(min(own).name)  # the folder that holds this configuration alone
            folders[-1] = min(own)
        else:
            names.append(said or members[0].stem)
    names = _qualified(names, folders)
    while len(names) > 1 and len({"/" in name and name.rpartition("/")[2] for name in names}) == 1 and "/" in names[0]:
        names = [name.rpartition("/")[0] for name in names]  # the last folder has the same name in all
    return [name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def _qualified(names: list[str], folders: Sequence[Path]) -> list[str]:
    """Return `names`, with those of the folders that hold it before each name that another one has too."""
    for depth in range(max((len(folder.parents) for folder in folders), default=0)):
        names = [
            f"{folder.parents[depth].name}/{name}"
            if names.count(name) > 1 and depth < len(folder.parents) - 1
            else name
            for name, folder in zip(names, folders, strict=True)
        ]
    return names


def common_metric(runs: Sequence[Run]) -> str | None:
    """Return the metric that most runs were evaluated by, `"loss"` if none was evaluated, `None` without losses."""
    metrics = [run.metric for run in runs if run.metric]
    return max(metrics, key=metrics.count, default=None) or ("loss" if any(run.losses for run in runs) else None)


def results_by_metric(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """Return metric -> configuration -> one value per run that has it, of the models that were kept."""
    results: dict[str, dict[str, list[float]]] = {}
    for configuration, members in by_configuration(runs).items():
        for run in members:
            for metric, value in run.results().items():
                results.setdefault(metric, {}).setdefault(configuration, []).append(value)
    return results


def names_of(runs: Iterable[Run]) -> dict[Run, str]:
    """Return a name for each run that no other has: the folder's, with the folders that hold it if needed."""
    runs = list(runs)
    return dict(zip(runs, _qualified([run.name for run in runs], [run.folder.resolve() for run in runs]), strict=True))


def common_name(folders: Iterable[str | Path]) -> str:
    """Return the name of the one folder, or of the nearest folder that holds them all."""
    return Path(commonpath([Path(folder).resolve() for folder in folders])).name or "Runs"


def short_label(configuration: str) -> str:
    """Return a configuration's name for a figure with little room: of settings only the values.

    Example:

    ```python
    >>> short_label("learning_rate=0.001, warmup_type=none")
    '0.001, none'

    ```
    """
    name = re.sub(r"\w+=", "", configuration)
    return name if len(name) <= 32 else f"{name[:31]}…"


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Return `mean ± sample standard deviation` as text; of values that are not all finite the mean alone.

    Example:

    ```python
    >>> mean_and_spread([0.8, 0.82])
    '0.810 ± 0.014'

    ```
    """
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and all(map(isfinite, values)) else ""
    return f"{mean(values):.{digits}f}{spread}"


def decimals(values: Iterable[float]) -> int:
    """Return the number of decimals for a column: three, fewer for hundreds of updates, more for small losses.

    Example:

    ```python
    >>> decimals([0.5, 0.25]), decimals([300, 197]), decimals([4e-4, 2e-4])
    (3, 1, 6)

    ```
    """
    largest = max((abs(value) for value in values if isfinite(value) and value), default=1.0)
    power = floor(log10(largest))
    return min(6, max(0, 3 - max(0, power) + max(0, -1 - power)))
