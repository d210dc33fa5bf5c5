"""One process of a run that is killed after the updates in KILL_AT, or resumed with another number of processes.

torchrun --nproc_per_node 2 tests/workers/elastic.py FOLDER UPDATES [OPTIMIZER] [BATCH SIZE]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import TrainerCallback

from hf_warmup import WarmupTrainer
from tests.testing_utils import arguments, examples, tiny_bert, train


class KillLast(TrainerCallback):
    """Kill the last process after each of the `updates`, once."""

    def __init__(self, folder: Path, updates: list[int]):
        self.folder, self.updates = folder, updates

    def on_step_end(self, args, state, control, **kwargs):
        flag = self.folder / f"killed-{state.global_step}"
        if state.global_step in self.updates and args.process_index == args.world_size - 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, updates, optim, batch_size = [*sys.argv[1:], *("adamw_torch", 8)[len(sys.argv) - 3 :]]
    args = arguments(
        folder, max_steps=int(updates), optim=optim, per_device_train_batch_size=int(batch_size),
        save_strategy="steps", save_steps=4,
    )  # fmt: skip
    trainer = WarmupTrainer(tiny_bert(), args, train_dataset=examples())
    kill_at = [int(update) for update in os.environ.get("KILL_AT", "").split(",") if update]
    trainer.add_callback(KillLast(Path(folder), kill_at))
    train(trainer, resume_from_checkpoint="auto")
    sys.stderr.flush()
    os._exit(0)  # gloo's threads abort now and then at the end of the interpreter
