"""Train with a guard that rewinds at updates 10 and 20, and again from the checkpoint between the two.

Each process writes what it has.

torchrun --nproc_per_node 2 tests/workers/guarded.py FOLDER ddp      # or fsdp2
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch

from hf_warmup import WarmupTrainer
from hf_warmup.guard import callback
from hf_warmup.norms.measure import local_shard
from hf_warmup.report.findings import Finding
from tests.testing_utils import arguments, examples, tiny_bert
from tests.workers.matrix import shard_on_cpu


STALLING = Finding("stalling", True, "The run is stalling.", {"update": 10}, "", None, 30.0, "a test")


def tensors(value: Any) -> list[torch.Tensor]:
    """Return all tensors in nested lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [tensor for item in items for tensor in tensors(item)]


class CheckedSnapshot(callback.Snapshot):
    """A snapshot that tells whether a restored run has its bits."""

    equal: ClassVar[list[bool]] = []

    def restore(self, model: Any, optimizer: Any) -> None:
        super().restore(model, optimizer)
        restored = callback.Snapshot.take(self.step, model, optimizer)
        pairs = zip(tensors(vars(self)), tensors(vars(restored)), strict=True)
        self.equal.append(all(torch.equal(saved, present) for saved, present in pairs))


def train(folder: Path, wrapping: str, checkpoint: str | None = None) -> dict[str, Any]:
    args = arguments(folder / "run", guard="rewind", max_steps=25, save_strategy="steps", save_steps=15)
    trainer = WarmupTrainer(tiny_bert(), args, train_dataset=examples(400))
    if wrapping == "fsdp2":
        shard_on_cpu(trainer.accelerator.state)
        trainer.is_fsdp_enabled = True
    trainer.train(resume_from_checkpoint=checkpoint)
    params = list(trainer.model_wrapped.parameters())
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in params]
    assert trainer.guard is not None
    assert trainer.guard.snapshot is not None
    copied = sum(tensor.numel() for group in trainer.guard.snapshot.params for tensor in group)
    return {
        "rewinds": trainer.guard.rewinds,
        "weights": sha256(torch.cat([p.detach().flatten() for p in weights]).numpy().tobytes()).hexdigest(),
        "restored": CheckedSnapshot.equal,
        "copied": copied,
        "local": sum(local_shard(p).numel() for p in params),
        "all": sum(p.numel() for p in params),
    }


def main(folder: Path, wrapping: str) -> None:
    callback.apply = lambda rules, records: [STALLING] * (records.updates in (10, 20) and len(records.steps) == 10)
    callback.WarmupGuard.__init__.__kwdefaults__["snapshot_steps"] = 5  # so that it has moments to restore
    taken = callback.Snapshot.take.__func__
    callback.Snapshot.take = classmethod(lambda cls, *args: taken(CheckedSnapshot, *args))
    checkpoint = str(folder / "run" / "checkpoint-15")
    results = {"whole": train(folder, wrapping), "resumed": train(folder, wrapping, checkpoint)}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # gloo workers may abort at the interpreter's exit


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
