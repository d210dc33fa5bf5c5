"""Runs that differ only in their seed belong together: how they are grouped, called, and averaged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import floor, isfinite, log10
from os.path import commonpath
from pathlib import Path
from statistics import mean, stdev

from .reading import Run


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
