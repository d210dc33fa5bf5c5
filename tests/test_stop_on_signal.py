"""A run that a signal stops continues to the bits of the run that was never stopped."""

from __future__ import annotations

import json
import signal

import pytest

from hf_warmup import StopOnSignalCallback, WarmupTrainer
from hf_warmup.report import read_run

from .processes import ROOT, run, torchrun
from .testing_utils import arguments, examples, tiny_bert, train


def stopped_run(folder, update, num_processes):
    output = folder.parent / f"{folder.name}-{update}.json"
    launcher = torchrun(num_processes) if num_processes > 1 else []
    done = run(*launcher, ROOT / "tests/workers/stopped_run.py", folder, update, output, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.multiprocess
@pytest.mark.parametrize("num_processes", [1, 2])
def test_stop_on_signal_callback_resumed_run_equals_run_never_stopped(tmp_path, num_processes):
    complete = stopped_run(tmp_path / "complete", 0, num_processes)
    assert (complete["step"], complete["received"], complete["exit_code"]) == (16, None, 0)

    folder = tmp_path / "stopped"
    first = stopped_run(folder, 5, num_processes)
    assert (first["step"], first["received"], first["exit_code"]) == (5, "SIGTERM", 143)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-5"]
    assert first["eval_losses"] == []  # the epoch has not ended
    assert read_run(folder).status == "stopped on SIGTERM at update 5 of 16, to be resumed"
    second = stopped_run(folder, 8, num_processes)  # the end of the epoch
    assert second["step"] == 8
    assert second["eval_losses"] == complete["eval_losses"][:1]
    third = stopped_run(folder, 0, num_processes)
    assert third == complete
    assert read_run(folder).end == "finished"


def test_stop_on_signal_callback_restores_handlers(tmp_path):

    former = signal.getsignal(signal.SIGUSR1)
    trainer = WarmupTrainer(
        tiny_bert(), arguments(tmp_path, max_steps=1, stop_on_signal=True), train_dataset=examples()
    )
    train(trainer)
    assert signal.getsignal(signal.SIGUSR1) is former
    stops = [each for each in trainer.callback_handler.callbacks if isinstance(each, StopOnSignalCallback)]
    assert [(stop.received, stop.exit_code) for stop in stops] == [(None, 0)]


def test_stop_on_signal_callback_unknown_signal_raises():
    with pytest.raises(ValueError, match=r"signals='SIGTREM' is unknown\. Did you mean 'SIGTERM'"):
        StopOnSignalCallback(["SIGTREM"])
