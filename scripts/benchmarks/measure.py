"""How the benchmarks measure: interleaved calls, peak memory, and tables of medians and ratios."""

from __future__ import annotations

import ctypes
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm


Row = dict[str, Any]
Table = dict[str, Any]  # "note": what was measured; "rows": one per candidate
WARM_UP = 2  # rounds that are not counted


def wall_clock(call: Callable[[], Any]) -> float:
    """Return the seconds of one call, including the work of the device."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    label: str,
    clock: Callable[[Callable[[], Any]], float] = wall_clock,
) -> dict[str, list[float]]:
    """Return the seconds of each call; every round calls the candidates in a new random order.

    Args:
        candidates (`Mapping[str, Callable]`): Name to call.
        rounds (`int`): Calls per candidate that are counted; up to two more rounds warm up.
        label (`str`): Of the progress bar.
        clock (`Callable`, *optional*): Returns the seconds of one call; by default the wall clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    warm_up = min(WARM_UP, rounds)
    for turn in tqdm(range(rounds + warm_up), desc=label, unit="round"):
        for name in random.sample(list(candidates), len(candidates)):
            took = clock(candidates[name])
            if turn >= warm_up:
                seconds[name].append(took)
    return seconds


class Finished:
    """The counts of finished parts of a section in a file, so that the same command continues an interrupted section.

    Args:
        path (`Path`): The file. One with other conditions is not read.
        conditions (`dict[str, Any]`): Versions and options that the counts depend on.
    """

    def __init__(self, path: Path, conditions: dict[str, Any]):
        self.path = path
        self.kept: dict[str, Any] = {"conditions": conditions}
        if path.exists() and (found := json.loads(path.read_text(encoding="utf-8")))["conditions"] == conditions:
            self.kept = found

    def count(self, part: str, measure: Callable[[], Counter[str]]) -> Counter[str]:
        """Return the counts of a part, measured now unless the file has them."""
        if part not in self.kept:
            self.kept[part] = measure()
            unfinished = self.path.with_suffix(".new")
            unfinished.write_text(json.dumps(self.kept), encoding="utf-8")
            unfinished.replace(self.path)
        return Counter(self.kept[part])


def table_of(note: str, seconds: Mapping[str, list[float]], **columns: Mapping[str, float]) -> Table:
    """Return a table with one row per candidate: median, best, their ratios to the first candidate, more columns.

    Example:

    ```python
    >>> table = table_of("two calls", {"a": [0.002, 0.004, 0.003], "b": [0.006, 0.006, 0.001]}, extra_mb={"b": 7.0})
    >>> table["rows"][1]
    {'name': 'b', 'median_ms': 6.0, 'best_ms': 1.0, 'ratio': 2.0, 'ratio_of_bests': 0.5, 'extra_mb': 7.0}

    ```
    """
    first = next(iter(seconds.values()))
    rows = [
        {
            "name": name,
            "median_ms": 1e3 * median(values),
            "best_ms": 1e3 * min(values),
            "ratio": median(values) / median(first),
            "ratio_of_bests": min(values) / min(first),
            **{key: column[name] for key, column in columns.items() if name in column},
        }
        for name, values in seconds.items()
    ]
    return {"note": note, "rows": rows}


def peak_extra_megabytes(call: Callable[[], Any]) -> float:
    """Return the memory that a call needs at its peak beyond what is already in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():  # not Linux
        return float("nan")

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier calls freed would hide what this call needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    call()
    return max(0, status("VmHWM") - before) / 1024


def print_table(title: str, table: Table) -> None:
    """Print a table."""
    columns = list(dict.fromkeys(key for row in table["rows"] for key in row))
    lines = [["", *columns[1:]], *([_shown(row.get(key, "")) for key in columns] for row in table["rows"])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title} ({table['note']})")
    for first, *cells in lines:
        others = "".join(f"{cell:>{width + 3}}" for cell, width in zip(cells, widths[1:], strict=True))
        print(f"  {first:<{widths[0]}}{others}")


def _shown(cell: object) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
