"""One process of a run that is killed at the moments in KILL_AT, or resumed with another number of processes.

torchrun --nproc_per_node 2 tests/workers/elastic.py FOLDER UPDATES [OPTIMIZER] [BATCH SIZE]

A moment is the number of an update, or `save-N` for the save after update N.
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


def kill_last(args, moment: str) -> None:
    """Kill the last process if this is one of the moments, once."""
    flag = Path(args.output_dir, f"killed-{moment}")
    last = args.process_index == args.world_size - 1
    if last and moment in os.environ.get("KILL_AT", "").split(",") and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        kill_last(args, str(state.global_step))


class KilledTrainer(WarmupTrainer):
    def _save_rng_state(self, output_dir):
        kill_last(self.args, f"save-{self.state.global_step}")  # while the other processes save
        super()._save_rng_state(output_dir)


if __name__ == "__main__":
    folder, updates, optim, batch_size = [*sys.argv[1:], *("adamw_torch", 8)[len(sys.argv) - 3 :]]
    args = arguments(
        folder, max_steps=int(updates), optim=optim, per_device_train_batch_size=int(batch_size),
        save_strategy="steps", save_steps=4,
    )  # fmt: skip
    trainer = KilledTrainer(tiny_bert(), args, train_dataset=examples(), callbacks=[Killed()])
    train(trainer, resume_from_checkpoint="auto")
    sys.stderr.flush()
    os._exit(0)  # gloo's threads abort now and then at the end of the interpreter
