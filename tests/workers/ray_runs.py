"""Runs under Ray on two CPUs: `ray_runs.py FOLDER auto|checkpoint|tune`. A worker of a training run is killed once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import ray
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.huggingface.transformers import RayTrainReportCallback
from ray.train.torch import TorchTrainer
from transformers import PrinterCallback, TrainerCallback

from hf_warmup import WarmupTrainer
from tests.testing_utils import arguments, examples, tiny_bert


class KillOnce(TrainerCallback):
    """Kill the last worker after update 6, between two checkpoints."""

    def __init__(self, folder: str):
        self.flag = Path(folder, "killed")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6 and args.process_index == args.world_size - 1 and not self.flag.exists():
            self.flag.touch()
            time.sleep(5)  # until Ray's controller has taken the checkpoint that was reported
            os.kill(os.getpid(), signal.SIGKILL)


def train_worker(config):
    folder, from_ray = config["output_dir"], config["from_ray"]
    options = {"optim": "radam", "save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 4}
    callbacks = [KillOnce(folder), *([RayTrainReportCallback()] if from_ray else [])]
    trainer = WarmupTrainer(tiny_bert(), arguments(folder, **options), train_dataset=examples(), callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    checkpoint = ray.train.get_checkpoint() if from_ray else None
    with checkpoint.as_directory() if checkpoint else nullcontext() as saved:
        trainer.train(f"{saved}/checkpoint" if saved else None if from_ray else "auto")
    if trainer.is_world_process_zero():
        Path(folder, "result.json").write_text(
            json.dumps({"step": trainer.state.global_step, "from_ray": bool(checkpoint)})
        )


def train(folder: str, from_ray: bool) -> None:
    TorchTrainer(
        train_worker,
        train_loop_config={"output_dir": folder, "from_ray": from_ray},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="ray", storage_path=folder, failure_config=FailureConfig(max_failures=2)),
    ).fit()


def search(folder: str) -> None:
    """Three trials: the second begins with an optimizer that warms up already, and is pruned."""
    space = {
        "optim": "radam",
        "warmup_type": tune.grid_search(["linear", "radam", "exponential"]),
        "warmup_steps": 0.5,
        "learning_rate": 2e-3,
    }
    args = arguments(folder, max_steps=4, eval_strategy="steps", eval_steps=4)
    trainer = WarmupTrainer(
        model_init=lambda: tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8)
    )
    best = trainer.hyperparameter_search(
        lambda trial: space, n_trials=1, backend="ray", storage_path=f"{folder}/ray", verbose=0
    )
    Path(folder, "result.json").write_text(json.dumps({"objective": best.objective, **best.hyperparameters}))


if __name__ == "__main__":
    output_dir = os.path.abspath(sys.argv[1])
    variables = {"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8, runtime_env={"env_vars": variables})
    if sys.argv[2] == "tune":
        search(output_dir)
    else:
        train(output_dir, from_ray=sys.argv[2] == "checkpoint")
