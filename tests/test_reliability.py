"""Runs that are killed at random moments and restarted give the loss curve of the run that was never stopped.

The scripts are started as users start them: Trainer and Accelerate loop, one and two processes. `kill -9` hits them
during and after the warmup, and during a save.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hf_warmup.checkpoints import MANIFEST_FILE
from hf_warmup.norms import GRADIENT_NORMS_FILE
from scripts.benchmarks.measure import Finished
from scripts.benchmarks.reliability import damages, kills

from .processes import ROOT, environment, torchrun
from .testing_utils import FROM_SCRATCH, write_task


pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

UPDATES, EVERY, KILLS = 60, 4, 3
COMMON = (*FROM_SCRATCH, "--learning_rate", 1e-2, "--optim", "radam", "--warmup_type", "linear")
TRAINER = (
    "--do_train --use_cpu --report_to none --disable_tqdm true --dataloader_pin_memory false --logging_steps 1 "
    f"--save_strategy steps --save_steps {EVERY} --save_total_limit 3 --max_steps {UPDATES} --warmup_steps 20"
).split()
LOOP = (
    f"--logging_steps 1 --checkpointing_steps {EVERY} --checkpoints_total_limit 3 "
    f"--max_train_steps {UPDATES} --num_warmup_steps 20"
).split()
CASES = [(script, world) for script in ("finetune_bert.py", "finetune_bert_no_trainer.py") for world in (1, 2)]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    write_task(folder)
    return folder


def start(task: Path, script: str, world: int, output_dir: Path) -> subprocess.Popen[bytes]:
    files = ("--train_file", task / "train.tsv", "--validation_file", task / "dev.tsv", "--task_name", "sst2")
    where = ("--tokenizer_name", task / "vocabulary", "--output_dir", output_dir, "--max_seq_length", 8)
    flags = [*files, *where, *COMMON, *(TRAINER if script == "finetune_bert.py" else LOOP)]
    flags += ["--per_device_train_batch_size", 8 // world, "--resume_from_checkpoint", "auto"]
    launcher = torchrun(world) if world > 1 else []
    with (output_dir.parent / f"{output_dir.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *map(str, launcher), str(ROOT / "scripts" / script), *map(str, flags)],
            env=environment(ACCELERATE_USE_CPU="true", HF_HOME=str(task / "cache")),
            stdout=log,
            stderr=log,
        )


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started with SIGKILL, in random order."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    random.shuffle(family)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def lines(output_dir: Path) -> int:
    path = output_dir / GRADIENT_NORMS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(output_dir: Path) -> bool:
    """Return whether a checkpoint is being written at this moment."""
    manifests = output_dir.glob(f"checkpoint-*/{MANIFEST_FILE}")
    return any(output_dir.glob(".saving-*")) or any('"files": null' in path.read_text() for path in manifests)


def result(output_dir: Path) -> tuple[list[tuple[float, float]], bytes]:
    """Return loss and learning rate of every update, and the bytes of the recording."""
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    curve = [(entry["loss"], entry["learning_rate"]) for entry in log if "loss" in entry]
    return curve, (output_dir / GRADIENT_NORMS_FILE).read_bytes()


@pytest.mark.parametrize(("script", "world"), CASES)
def test_a_run_killed_at_random_moments_gives_the_same_curve(task, tmp_path, script, world):
    whole = tmp_path / "whole"
    process = start(task, script, world, whole)
    assert process.wait(300) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    seed = int(os.environ.get("HF_WARMUP_KILL_SEED", random.randrange(10**6)))
    moments = random.Random(seed)
    killed, kills, deadline = tmp_path / "killed", 0, time.monotonic() + 500
    during_saves = 0
    while kills < KILLS:
        assert time.monotonic() < deadline
        process = start(task, script, world, killed)
        done = lines(killed)
        wait_for_save = moments.random() < 0.4
        aim = done + moments.randint(1, 3 * EVERY)
        began = False
        while process.poll() is None:
            began = began or lines(killed) != done or done == 0
            if (wait_for_save and began and lines(killed) > EVERY and saving(killed)) or (
                not wait_for_save and began and lines(killed) >= aim
            ):
                break
            time.sleep(0.0005)
        if process.poll() is not None:
            assert process.returncode == 0, (tmp_path / "killed.log").read_text()[-3000:]
            break  # it has finished, and the kills so far count
        time.sleep(moments.random() * 0.02)
        during_saves += saving(killed)
        kill_all(process)
        kills += 1
    if process.returncode != 0:
        process = start(task, script, world, killed)
        assert process.wait(300) == 0, (tmp_path / "killed.log").read_text()[-3000:]
    assert kills >= 2, f"seed {seed}"
    assert result(killed) == result(whole), f"seed {seed}"
    assert len(result(whole)[0]) == UPDATES
    print(f"{script}, {world} processes: killed {kills} times, {during_saves} during a save (seed {seed})")


def test_killed_runs_of_the_benchmark_give_the_same_result(tmp_path):
    total = kills(12, Finished(tmp_path / "kills.json", {}))["kills"]["rows"][-1]
    assert (total["same_result"], total["hang"], total["abort"]) == (total["chains"], 0, 0)


def test_any_damage_to_any_file_is_named_and_the_resumed_run_has_the_same_result(tmp_path):
    """Only a manifest that is gone is not named; the other files are sound then."""
    (table,) = damages(1, ("Trainer",), Finished(tmp_path / "damages.json", {})).values()
    total = table["rows"][-1]
    assert total["damaged"] > 150
    assert total["named"] == total["damaged"] - 1
    assert total["same_result"] == total["damaged"]
