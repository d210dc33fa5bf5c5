"""Two runs that do not end by themselves. Each writes its process number to its folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def run_one(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
    return {}


if __name__ == "__main__":
    from scripts.reproductions.kept_runs import run_all
    from tests.workers.slow_runs import run_one as importable

    output_dir = Path(sys.argv[1])
    run_all(importable, {output_dir / name: {"name": name} for name in "ab"}, output_dir, 2)
