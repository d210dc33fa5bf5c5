"""Runs as one tidy table: a row for each value that was logged or recorded."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .comparison import by_configuration, differing_settings, known_settings, names_of
from .run import PathLike, Run, find_runs


if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("run", "configuration", "seed", "update", "key", "value")


def _values(run: Run) -> Iterator[tuple[int, str, float]]:
    """Yield update, key and value: of the recording, and of the log what was not recorded."""
    recorded = run.recording.values
    for key in recorded:
        for step, value in zip(*run.recorded(key), strict=True):
            yield step, key, value
    for key in dict.fromkeys(key for entry in run.log_history for key in entry):
        if key != "step" and key not in recorded:
            for step, value in zip(*run.series(key), strict=True):
                yield step, key, value


def iter_table(runs: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table as dictionaries, with the settings in which the runs differ."""
    runs = find_runs(runs)
    names, differing = names_of(runs), differing_settings(runs)
    for configuration, members in by_configuration(runs).items():
        for run in members:
            settings = known_settings(run)
            shared = {"run": names[run], "configuration": configuration, "seed": run.seed}
            shared |= {key: settings.get(key, "") for key in differing}
            for step, key, value in _values(run):
                yield {**shared, "update": step, "key": key, "value": value}


def to_dataframe(runs: Any) -> DataFrame:
    """Return all values of runs as a tidy `pandas.DataFrame`.

    Args:
        runs (`str`, `os.PathLike`, [`Run`], a Trainer, or a list of these): What to read.

    Returns:
        `pandas.DataFrame`: The columns `run`, `configuration`, `seed`, one for each setting in which the runs differ,
        `update`, `key` and `value`.

    Raises:
        `ImportError`: If pandas is missing.
    """
    try:
        from pandas import DataFrame
    except ImportError:
        raise ImportError("pandas is missing. Install it: pip install pandas") from None
    rows = list(iter_table(runs))
    return DataFrame(rows, columns=list(rows[0]) if rows else list(COLUMNS))


def write_csv(runs: Sequence[Run], path: PathLike) -> Path:
    """Write the table of [`to_dataframe`] as CSV, without pandas; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        settings = differing_settings(runs)
        writer = csv.DictWriter(file, [*COLUMNS[:3], *settings, *COLUMNS[3:]])
        writer.writeheader()
        writer.writerows(iter_table(runs))
    return path
