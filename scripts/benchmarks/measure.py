"""What `benchmark.py` measures with: calls in turns, peak memory, tables, and a bar chart of ratios."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm


Row = dict[str, Any]
WARM_UP = 2  # rounds that do not count, but no more than those that do


def wall_clock(call: Callable[[], Any]) -> float:
    """Seconds of one call, the device's work included."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleave(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    label: str,
    clock: Callable[[Callable[[], Any]], float] = wall_clock,
) -> dict[str, list[float]]:
    """Seconds of each call, candidates in a new random order every round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    warm_up = min(WARM_UP, rounds)
    for turn in tqdm(range(rounds + warm_up), desc=label, unit="round"):
        for name in random.sample(list(candidates), len(candidates)):
            took = clock(candidates[name])
            if turn >= warm_up:
                seconds[name].append(took)
    return seconds


def rows_of(seconds: dict[str, list[float]], **columns: dict[str, Any]) -> list[Row]:
    """One row a candidate: medians, bests, the ratios of either to the first candidate's, and more columns by name."""
    first = next(iter(seconds.values()))
    return [
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


def peak_extra_megabytes(call: Callable[[], Any]) -> float:
    """What `call` needs beyond what is held already: resident memory's high-water mark, or the CUDA allocator's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed goes back, or this one would have it for nothing
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    call()
    return max(0, status("VmHWM") - before) / 1024


def print_table(title: str, rows: list[Row]) -> None:
    print(f"\n{title}\n  {'':<34}{'median ms':>12}{'best ms':>12}{'ratio':>9}{'of bests':>9}")
    for row in rows:
        name, *known = (row[key] for key in ("name", "median_ms", "best_ms", "ratio", "ratio_of_bests"))
        more = "".join(f"  {key} {value:.2f}" for key, value in list(row.items())[5:])
        print(f"  {name:<34}{known[0]:>12.2f}{known[1]:>12.2f}{known[2]:>9.3f}{known[3]:>9.3f}{more}")


def write_chart(tables: dict[str, list[Row]], path: Path, ours: tuple[str, ...]) -> None:
    """A bar a candidate, its ratio to the first of its table; names that begin as `ours` do in blue."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 0.32 * sum(len(rows) + 2 for rows in tables.values())), layout="constrained")
    heights = {"height_ratios": [len(rows) for rows in tables.values()]}
    grid = figure.subplots(len(tables), 1, squeeze=False, gridspec_kw=heights)
    for axes, (title, rows) in zip(grid.flat, tables.items(), strict=True):
        colors = ["#0072B2" if row["name"].startswith(ours) else "#999999" for row in rows]
        bars = axes.barh([row["name"] for row in rows], [row["ratio"] for row in rows], color=colors)
        readable = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # where the line runs through
        labels = [f"{row['ratio']:{'.2f' if row['ratio'] >= 0.1 else '.2g'}}" for row in rows]
        axes.bar_label(bars, labels, padding=3, fontsize=8, bbox=readable)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("time, ratio to the first of each table", fontsize=9)
    figure.savefig(path, dpi=150)
