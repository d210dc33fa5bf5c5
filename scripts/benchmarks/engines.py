"""The same short run under every engine: undisturbed, killed, with another number of processes, and asked to stop."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from hf_warmup.model_card import environment
from hf_warmup.norms import read_gradient_norms
from scripts.reproductions.kept_runs import run_all

from .measure import Table
from .runs import WEIGHTS_FILE, Plan, Run, run_fabric, run_lightning, train


PLAN = Plan(updates=24, save_steps=6, layers=2, limit=None, dropout=0.0)
LIMIT = 600.0  # seconds after which a start counts as hanging
NOTE = (
    f"{PLAN.updates} updates of a small BERT without dropout, saved every {PLAN.save_steps}; `weights` is the start of "
    "their MD5 digest, `same` means an equal digest, exit codes are those of the launcher. Another number of processes "
    "adds the gradients in another order: the figure is the distance from the undisturbed weights over their norm. The "
    "cells took {minutes:.0f} minutes together"
)
ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = {"good": 1, "fine": 1, "great": 1, "bad": 0, "poor": 0, "dull": 0}


def execute(*command: object, **variables: str) -> NoReturn:
    """Replace this process by `python command`."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.execve(
        sys.executable, [sys.executable, *map(str, command)], {**os.environ, **own, "PYTHONPATH": path, **variables}
    )


def train_here(folder: Path, plan: Plan, world: int) -> int:
    """Train in this process, or under torchrun in several."""
    return train(folder, plan) if world == 1 else torchrun("trainer")(folder, plan, world)


def torchrun(job: str) -> Callable[[Path, Plan, int], Any]:
    """Return a function that starts one of the `JOBS`."""

    def start(folder: Path, plan: Plan, world: int) -> None:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", world, "--max-restarts", 3)
        execute(*launcher, "-m", __name__, job, folder, world, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")

    return start


def notebook_launcher(folder: Path, plan: Plan, world: int) -> None:
    import accelerate

    os.environ.update(ACCELERATE_USE_CPU="true", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    accelerate.notebook_launcher(train, (folder, plan), world, use_port="0", max_restarts=3, rdzv_backend="c10d")


def accelerate_launch(folder: Path, plan: Plan, world: int) -> NoReturn:
    """Start the script with the Accelerate loop, as `docs/how-to/launching.md` does."""
    task = write_task(folder.parent / "task")
    launcher: tuple[object, ...] = ()
    if world > 1:  # with one process `accelerate launch --multi_gpu` is an error
        config = ("--config_file", ROOT / "scripts/accelerate_configs/cpu.yaml", "--num_processes", world)
        restarts = ("--max_restarts", 3, "--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file")
        launcher = ("-m", "accelerate.commands.launch", *config, "--main_process_port", 0, *restarts)
    files = ("--train_file", task / "train.tsv", "--validation_file", task / "dev.tsv", "--task_name", "sst2")
    common = ("--max_seq_length", 8, "--learning_rate", 1e-3, "--per_device_train_batch_size", 16 // world)
    length = ("--max_train_steps", plan.updates, "--checkpointing_steps", plan.save_steps, "--logging_steps", 1)
    resume = ("--resume_from_checkpoint", "auto", "--stop_on_signal", "true")
    model = ("--model_name_or_path", task / "model", "--output_dir", folder)
    command = (*launcher, ROOT / "scripts/finetune_bert_no_trainer.py", *files, *common, *length, *resume, *model)
    execute(*command, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", HF_HOME=str(task / "cache"))


def write_task(folder: Path) -> Path:
    """Write files like SST-2's in which one word decides, and a small BERT with a vocabulary."""
    if not folder.exists():
        model = folder / "model"
        model.mkdir(parents=True)
        (model / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "a", "very", "the", "film"])
        )
        rows = [f"a {very} {word} film\t{label}" for word, label in WORDS.items() for very in ("very", "the")]
        (folder / "train.tsv").write_text("sentence\tlabel\n" + "\n".join(rows * 8) + "\n")
        (folder / "dev.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
        torch.manual_seed(0)
        config = BertConfig(vocab_size=15, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZES)
        BertForSequenceClassification(config).save_pretrained(model)
    return folder


def ray_train(folder: Path, plan: Plan, world: int) -> NoReturn:
    execute("-m", __name__, "ray", folder, world, RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")


def run_ray(folder: Path, plan: Plan, world: int) -> None:
    """Train with Ray Train, which starts all workers again if one dies."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    variables = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8, runtime_env={"env_vars": variables})
    TorchTrainer(
        lambda config: train(folder, plan),
        scaling_config=ScalingConfig(num_workers=world),
        run_config=RunConfig(storage_path=f"{folder}-ray", failure_config=FailureConfig(max_failures=3)),
    ).fit()


@dataclass(frozen=True)
class Engine:
    """How an engine starts the run, and what its processes are called.

    Args:
        start (`Callable`): Starts the run in a folder, with a plan and a number of processes.
        world (`int`): Processes of the undisturbed run.
        other_world (`int`): Processes that continue it.
        worker (`str`): Part of the command line of the processes that train, if the launcher starts others, too.
        cannot_stop (`str`): Why the run cannot be asked to stop, if so.
    """

    start: Callable[[Path, Plan, int], Any]
    world: int = 2
    other_world: int = 1
    worker: str = ""
    cannot_stop: str = ""


ENGINES = {
    "Trainer, one process": Engine(train_here, 1, 2),
    "torchrun, Trainer": Engine(torchrun("trainer")),
    "torchrun, Lightning": Engine(torchrun("lightning")),
    "torchrun, Fabric": Engine(torchrun("fabric")),
    "notebook_launcher": Engine(notebook_launcher),
    "accelerate launch, finetune_bert_no_trainer.py": Engine(accelerate_launch),
    "Ray Train": Engine(ray_train, worker="RayTrainWorker", cannot_stop="trains in a thread"),
}


def start_engine(folder: Path, plan: Plan, name: str, world: int) -> int:
    """Start an engine in a process that has been forked."""
    return ENGINES[name].start(folder, plan, world) or 0


# Cells


def checkpoint(folder: Path, number: int) -> Path:
    return folder / f"checkpoint-{number * PLAN.save_steps}"


def wait_for(run: Run, path: Path) -> bool:
    """Wait for a checkpoint; return whether the run has not ended before."""
    deadline = time.monotonic() + LIMIT
    while not path.exists() and time.monotonic() < deadline:
        if run.wait(0.002):
            return False
    return True


def workers(run: Run, engine: Engine) -> list[psutil.Process]:
    """Return the processes that train; the launcher itself, if it starts none."""
    launcher = psutil.Process(run.processes[0].pid)
    found = []
    for process in launcher.children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if engine.worker in command and "resource_tracker" not in command:
            found.append(process)
    return found or [launcher]


def start(engine: Engine, folder: Path, world: int) -> Run:
    name = next(name for name, each in ENGINES.items() if each is engine)
    return Run(start_engine, folder, PLAN, name, world)


def finish(run: Run, folder: Path) -> None:
    if not run.wait(LIMIT) or run.exit_codes != [0]:
        run.kill()
        raise RuntimeError(f"{folder} was not trained (exit code {run.exit_codes[0]}):\n{run.output[-3000:]}")
    steps = [record["step"] for record in read_gradient_norms(folder)]
    if steps != list(range(1, PLAN.updates + 1)):
        raise RuntimeError(f"The recording of {folder} has the updates {steps}.")


def digest(folder: Path) -> str:
    """Return the MD5 digest of the weights."""
    weights = load_file(folder / WEIGHTS_FILE)
    return hashlib.md5(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


def distance(folder: Path, other: Path) -> float:
    """Return the norm of the difference of the weights, relative to the norm of the second ones."""
    ours, theirs = (
        torch.cat([p.flatten().double() for _, p in sorted(load_file(each / WEIGHTS_FILE).items())])
        for each in (folder, other)
    )
    return ((ours - theirs).norm() / theirs.norm()).item()


def same(folder: Path, whole: Path) -> str:
    return "same" if digest(folder) == digest(whole) else f"other ({digest(folder)[:8]})"


def undisturbed(engine: Engine, folder: Path, whole: Path) -> str:
    finish(start(engine, folder, engine.world), folder)
    return digest(folder)[:8]


def killed(engine: Engine, folder: Path, whole: Path) -> str:
    """Kill the last process with SIGKILL after two checkpoints. Start again what no launcher starts again."""
    run, kills, starts = start(engine, folder, engine.world), 0, 1
    for number in (1, 2):
        if not wait_for(run, checkpoint(folder, number)):
            break
        workers(run, engine)[-1].kill()
        kills += 1
        time.sleep(0.5)  # until the launcher has seen it
        if engine.world == 1:
            run.wait(LIMIT)
            run.kill()
            run, starts = start(engine, folder, engine.world), starts + 1
    finish(run, folder)
    return f"{same(folder, whole)}, {kills} kills, {'restarted' if starts == 1 else 'started again'}"


def processes_changed(engine: Engine, folder: Path, whole: Path) -> str:
    """Continue the undisturbed run from its second checkpoint with another number of processes."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(*(checkpoint(whole, n).name for n in (3, 4))))
    (folder / WEIGHTS_FILE).unlink()
    finish(start(engine, folder, engine.other_world), folder)
    return f"{engine.world} to {engine.other_world}: {distance(folder, whole):.0e}"


def asked_to_stop(engine: Engine, folder: Path, whole: Path) -> str:
    """Send SIGTERM after the first checkpoint, and start the run again."""
    if engine.cannot_stop:
        return f"not possible: {engine.cannot_stop}"
    run = start(engine, folder, engine.world)
    if not wait_for(run, checkpoint(folder, 1)):
        raise RuntimeError(f"{folder} ended before it was asked to stop:\n{run.output[-3000:]}")
    psutil.Process(run.processes[0].pid).send_signal(signal.SIGTERM)
    stopped = run.wait(60)
    code = run.exit_codes[0]
    run.kill()
    if not stopped or (folder / WEIGHTS_FILE).exists():
        raise RuntimeError(f"{folder} did not stop within a minute (exit code {code}):\n{run.output[-3000:]}")
    finish(start(engine, folder, engine.world), folder)
    return f"{same(folder, whole)}, exit code {code}"


CELLS = {"weights": undisturbed, "killed": killed, "processes_changed": processes_changed, "stopped": asked_to_stop}


def run_cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one cell of the table."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    began = time.monotonic()
    cell = CELLS[settings["cell"]]
    found = cell(ENGINES[settings["engine"]], folder / "run", folder.with_name("weights") / "run")
    return {"found": found, "seconds": time.monotonic() - began}


def engines(names: Collection[str] = tuple(ENGINES), output_dir: Path = Path("runs/engines")) -> Table:
    """Return the table of engines. Cells that an interrupted call of the same commit has stored are kept."""
    if unknown := set(names) - ENGINES.keys():
        raise ValueError(f"only={min(unknown)!r}: expected some of {', '.join(ENGINES)}.")
    output_dir, made_with = output_dir.resolve(), environment()  # Ray's workers have working directories of their own
    jobs = {
        output_dir / engine.replace(" ", "-") / cell: {**made_with, "engine": engine, "cell": cell}
        for engine in names
        for cell in CELLS
    }
    rows: dict[str, dict[str, Any]] = {}
    results = run_all(run_cell, jobs, output_dir, num_workers=1)
    for result in results:
        rows.setdefault(result["engine"], {"name": result["engine"]})[result["cell"]] = result["found"]
    shutil.rmtree(output_dir)  # complete: the next call measures again
    minutes = sum(result["seconds"] for result in results) / 60
    return {"note": NOTE.format(minutes=minutes), "rows": list(rows.values())}


JOBS: dict[str, Callable[[Path, Plan, int], Any]] = {
    "trainer": lambda folder, plan, world: train(folder, plan),
    "lightning": run_lightning,
    "fabric": run_fabric,
    "ray": run_ray,
}

if __name__ == "__main__":
    code = JOBS[sys.argv[1]](Path(sys.argv[2]), PLAN, int(sys.argv[3])) or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo may abort while the interpreter ends
