"""What a run was made with, written as JSON when it begins, so that it can be read after a crash and without pickle."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

FILE_NAME = "run_settings.json"
PACKAGES = ("hf-warmup", "torch", "transformers", "accelerate", "datasets")


def environment() -> dict[str, str]:
    """Versions, commit and machine of this process."""
    import torch

    described = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # a checkout that is not installed has no version
            described[name] = version(name)
    described["python"] = platform.python_version()
    try:
        git = ["git", "rev-parse", "--short", "HEAD"]
        described["commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        pass
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        threads = torch.get_num_threads()
        device = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    described["machine"] = f"{platform.system()} {platform.machine()}, {device}"
    return described


def command_line(argv: list[str]) -> str:
    """`argv` as one would type it, with nothing secret in it.

    Example:

    ```python
    >>> command_line(["/usr/bin/python3", "train.py", "--hub_token", "hf_secret", "--optim=radam"])
    'python train.py --hub_token ... --optim=radam'

    ```
    """
    words = ["python", *argv[1:]]
    for i in range(1, len(words)):
        if re.fullmatch(r"--?\w*(token|key|password|secret)", words[i - 1]):
            words[i] = "..."
        words[i] = re.sub(r"(?<=token=|..key=)\S+|hf_[A-Za-z0-9]{20,}", "...", words[i])
    return shlex.join(words).replace("'...'", "...")


# What makes a resumed run another run; where and how it logs does not.
_DECISIVE = re.compile(
    "^optim|learning_rate|weight_decay|^adam_|^lr_scheduler|warmup|train_batch|accumulation|train_epochs|"
    "^max_steps|^max_train_steps|^max_grad_norm|^seed"
)


def read_run_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What [`write_run_settings`] wrote, or `{}`."""
    try:
        described = json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or not ours to read
        return {}
    return described if isinstance(described, dict) else {}


def copy_run_settings(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """From a run's folder to its new checkpoint, and back where a run is resumed: a later attempt has its own.

    Nothing happens where `source` has none.
    """
    path = Path(source) / FILE_NAME
    if path.is_file():
        Path(target).mkdir(parents=True, exist_ok=True)
        (Path(target) / FILE_NAME).write_bytes(path.read_bytes())


def _changed(before: Mapping[str, Any], training_args: Mapping[str, Any]) -> list[str]:
    """`"learning_rate was 0.001, is 0.002"` for each decisive argument that differs."""
    now = json.loads(json.dumps(dict(training_args), default=str))
    keys = [key for key in now if _DECISIVE.search(key) and key in before and before[key] != now[key]]
    return [f"{key} was {before[key]}, is {now[key]}" for key in keys]


def write_run_settings(
    folder: str | os.PathLike[str],
    training_args: Mapping[str, Any],
    model_config: Mapping[str, Any],
    num_training_steps: int,
    num_warmup_steps: int,
    resumed: bool = False,
) -> None:
    """Write `run_settings.json` into the output folder; a run that is resumed with other settings says so.

    Args:
        folder (`str` or `os.PathLike`): The run's output folder.
        training_args (`Mapping[str, Any]`): As from `args.to_dict()`, which masks tokens.
        model_config (`Mapping[str, Any]`): As from `model.config.to_dict()`.
        num_training_steps (`int`): Updates that the run is planned to take.
        num_warmup_steps (`int`): Updates of warmup that were asked for, a ratio resolved.
        resumed (`bool`, defaults to `False`): Whether the run goes on from a checkpoint, whose settings
            [`copy_run_settings`] has brought to `folder`.
    """
    notebook = "ipykernel" in sys.modules  # whose command line says nothing about the run
    described = {
        "made_with": environment() | ({} if notebook else {"command": command_line(sys.orig_argv)}),
        "num_training_steps": num_training_steps,
        "num_warmup_steps": num_warmup_steps,
        "training_args": dict(training_args),
        "model_config": dict(model_config),
    }
    before = read_run_settings(folder).get("training_args", {}) if resumed else {}
    if changed := _changed(before, described["training_args"]):
        logger.warning(
            f"The run is resumed with other settings: {'; '.join(changed)}. Kept from the checkpoint: the optimizer's "
            "options (peak learning rate, weight decay, betas, the warmup of adam_warmup) and a schedule that follows "
            "a metric. New, from the second update on: the shape, warmup and length of any other schedule."
        )
    path = Path(folder) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described, indent=1, default=str) + "\n", encoding="utf-8")
