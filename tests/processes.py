"""Start programs as their users do, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def environment(**variables: str) -> dict[str, str]:
    """One thread a process, no hub, this checkout, and none of the surrounding launcher's variables."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "TORCHELASTIC_"))}
    own = {key: value for key, value in own.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **variables}


def run(*command: object, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python *command`, waited for; what it says is kept."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def torchrun(num_processes: int) -> list[object]:
    """The command of `num_processes` processes on this machine, to be followed by a script."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
