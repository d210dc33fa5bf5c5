"""Train with a guard that rewinds at update 10, then resume from a checkpoint; each process writes what it has."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from hf_warmup import WarmupTrainer
from hf_warmup.guard import callback
from hf_warmup.report.findings import Finding
from tests.testing_utils import arguments, examples, tiny_bert


STALLING = Finding("stalling", True, "The run is stalling.", {"update": 10}, "", None, 30.0, "a test")


def main(folder: Path) -> None:
    callback.apply = lambda rules, records: [STALLING] * (records.updates == 10 == len(records.steps))
    results = {}
    for name, checkpoint in (("whole", None), ("resumed", str(folder / "run" / "checkpoint-15"))):
        args = arguments(folder / "run", guard="rewind", max_steps=20, save_strategy="steps", save_steps=15)
        trainer = WarmupTrainer(tiny_bert(), args, train_dataset=examples(320))
        trainer.train(resume_from_checkpoint=checkpoint)
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        results[name] = {"rewinds": trainer.guard.rewinds, "weights": weights.double().sum().item().hex()}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # gloo workers may abort at the interpreter's exit


if __name__ == "__main__":
    main(Path(sys.argv[1]))
