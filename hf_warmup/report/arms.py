"""Runs that differ only in their seed belong together: how they are grouped, called, and averaged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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
    """`mean ± sample standard deviation`.

    Example:

    ```python
    >>> mean_and_spread([0.8, 0.82])
    '0.810 ± 0.014'

    ```
    """
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
