"""A run that is sent a signal after an update, on its last process only: `stopped_run.py FOLDER UPDATE OUTPUT`.

Process 0 writes to OUTPUT where the run ended, which signal ended it, its exit code, and its weights.
"""

import json
import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from hf_warmup import StopOnSignalCallback, WarmupTrainer
from tests.testing_utils import arguments, examples, tiny_bert, train


class SendSignal(TrainerCallback):
    """Send SIGTERM to the last process after update `update`."""

    def __init__(self, update: int):
        self.update = update

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.update - 1 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(folder: str, update: int, output: str) -> None:
    args = arguments(
        folder, optim="radam", warmup_type="linear", warmup_steps=4, eval_strategy="epoch", save_strategy="no",
        max_steps=-1, num_train_epochs=2, per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", 1)),
    )  # fmt: skip
    stop = StopOnSignalCallback()
    trainer = WarmupTrainer(tiny_bert(), args, train_dataset=examples(), eval_dataset=examples(8), callbacks=[stop])
    trainer.add_callback(SendSignal(update))
    train(trainer, resume_from_checkpoint="auto")
    if trainer.is_world_process_zero():
        weights = {name: p.tolist() for name, p in trainer.model.state_dict().items()}
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        described = {"step": trainer.state.global_step, "received": stop.received, "exit_code": stop.exit_code}
        losses = [entry["eval_loss"] for entry in evaluations]
        Path(output).write_text(json.dumps(described | {"weights": weights, "eval_losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    os._exit(0)  # gloo workers may abort at interpreter exit
