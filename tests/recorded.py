"""Run folders written by hand, with curves that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_warmup.report import Run, read_run


def write_run(
    folder: Path,
    layers: int = 3,
    steps: int = 5,
    growth: float = 1.0,
    *,
    onset: int = 1,
    loss: Callable[[int], float] = lambda t: 1 / t,
    norm: float = 1.0,
    log: dict[str, Any] | None = None,
    planned: int | None = None,
    checkpoint: int | None = None,
    stopped: bool = False,
    **settings: Any,
) -> Path:
    """A run whose loss is 1/t and whose layer i has the norm 1 / t, and growth^i / t from update `onset` on.

    With fewer steps than `planned` it was killed, and only a checkpoint has the state, unless it `stopped` by itself.
    With `settings` there is a `run_settings.json` of them.
    """
    folder.mkdir(parents=True)
    entries = [{"loss": loss(t), "learning_rate": 0.1, **(log or {}), "step": t} for t in range(1, steps + 1)]
    entries.append({"eval_loss": 1.0, "eval_runtime": 9.0, "step": steps})
    if stopped or steps >= (planned or 0):
        entries.append({"train_runtime": 1.0, "train_loss": 1.0, "step": steps})
    state = {"log_history": entries, "global_step": steps, "best_global_step": None}
    if checkpoint is None and steps < (planned or 0) and not stopped:
        checkpoint = steps
    where = folder / f"checkpoint-{checkpoint}" if checkpoint else folder
    where.mkdir(exist_ok=True)
    (where / "trainer_state.json").write_text(json.dumps(state | {"max_steps": planned or steps}))
    lines = [
        {"step": t, "grad_norm": norm, "grad_norm/embeddings": 1.0}
        | {f"grad_norm/encoder.layer.{i}": growth ** (i * (t >= onset)) / t for i in range(layers)}
        for t in range(1, steps + 1)
    ]
    (folder / "gradient_norms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if settings:
        described = {"training_args": settings, "num_training_steps": planned or steps}
        if "num_warmup_steps" in settings:
            described["num_warmup_steps"] = settings.pop("num_warmup_steps")
        (folder / "run_settings.json").write_text(json.dumps(described))
    return folder


def recorded(folder: Path, *args: Any, **kwargs: Any) -> Run:
    """The same, read."""
    return read_run(write_run(folder, *args, **kwargs))
