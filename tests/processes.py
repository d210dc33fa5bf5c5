"""Start programs in processes of their own, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "scripts/accelerate_configs"
LAUNCH = ("-m", "accelerate.commands.launch")


def environment(**variables: str) -> dict[str, str]:
    """Return an environment with one thread, no hub, this checkout, and no variables of a surrounding launcher."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "TORCHELASTIC_"))}
    own = {key: value for key, value in own.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **variables}


def run(*command: object, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python *command` and capture its output."""
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
    """Return the start of a command that runs a script in `num_processes` processes on this machine."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
