"""`report.run`: the files of a run folder are written, read into columns, and found."""

from __future__ import annotations

import json
import subprocess
import sys
from math import inf, isnan
from types import SimpleNamespace

import pytest

from hf_warmup.report import find, find_runs, read_run
from hf_warmup.report.run import (
    append_rows,
    iter_rows,
    read_columns,
    set_aside_former_run,
    truncate_rows,
    write_run_end,
    write_run_settings,
)

from .recorded import logged, recorded, write_run, write_state


# --- the recording ---


def test_read_columns_keeps_missing_values_and_zeros_apart(tmp_path):
    path = tmp_path / "gradient_norms.jsonl"
    append_rows(
        path,
        [{"step": 1, "grad_norm/a": 0.0}, {"step": 3, "grad_norm/a": None, "grad_norm/b": 2.0, "nonfinite": ["a"]}],
    )
    append_rows(path, [{"step": 3, "loss": 0.5}, {"step": 4, "learning_rate": [1e-3, 1e-4]}])
    columns = read_columns(path)
    assert list(columns.steps) == [1, 3, 4]
    assert columns.values["grad_norm/a"][0] == 0.0
    assert isnan(columns.values["grad_norm/a"][1])
    assert list(columns.values["loss"])[1] == 0.5
    assert (columns.values["learning_rate"][2], columns.values["learning_rate/1"][2]) == (1e-3, 1e-4)
    assert columns.nonfinite == {3: ["a"]}


def test_rows_of_an_earlier_step_replace_those_from_there_on(tmp_path):
    path = tmp_path / "gradient_norms.jsonl"
    append_rows(path, [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)])
    append_rows(path, [{"step": step, "loss": 2.0} for step in (3, 4)])  # resumed from 2 without truncation
    columns = read_columns(path)
    assert (list(columns.steps), list(columns.values["loss"])) == ([1, 2, 3, 4], [1.0, 1.0, 2.0, 2.0])


NO_RECORDS = ["[]", "null", "\0" * 32, "{}", '{"step": 0}', '{"step": 1.5}', '{"step": true}', '{"step": 9, "lo']
NO_RECORDS += [
    "[" * 10**5,
    '{"a":' * 10**5,
    f'{{"step": {2**63}}}',
    '{"step": 1e400}',
    '{"step": NaN}',
    '\xff{"step": 2}',
]
ODD_VALUES = ["null", '"x"', "{}", "[]", "[[1], null]", "true", "NaN", "-Infinity", "9" * 400]


@pytest.mark.parametrize("line", NO_RECORDS)
def test_lines_that_hold_no_record_are_skipped_with_one_warning(tmp_path, caplog, line):
    path = tmp_path / "gradient_norms.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n{line}\n', encoding="latin-1")
    assert [row["step"] for row in iter_rows(path)] == [1, 2]
    (message,) = caplog.messages
    assert "skipped 2 lines that hold no record" in message


@pytest.mark.parametrize("key", ["grad_norm", "grad_norm/a.0", "loss", "nonfinite", "rewound_to"])
@pytest.mark.parametrize("value", ODD_VALUES)
def test_a_row_with_an_odd_value_is_read_without_it(tmp_path, key, value):
    path = tmp_path / "gradient_norms.jsonl"
    path.write_text(f'{{"step": 1, "grad_norm/a.0": 0.5, "grad_norm/a.1": 1.0}}\n{{"step": 2, "{key}": {value}}}\n')
    (run,) = find_runs(tmp_path)
    assert list(run.steps) == [1, 2]
    assert run.ratio().values[0] == 2.0
    find(run)


@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_truncate_rows_keeps_rows_up_to_the_step(tmp_path, step):
    path = tmp_path / "gradient_norms.jsonl"
    append_rows(path, [{"step": t} for t in (1, 2, 3)])
    with path.open("a") as file:
        file.write('[]\n{"step": 2, "cut o')  # a killed process
    inode = path.stat().st_ino
    truncate_rows(path, step)
    assert [row["step"] for row in iter_rows(path)] == [t for t in (1, 2, 3) if t <= step]
    assert path.stat().st_ino == inode  # in place
    assert [path.name for path in tmp_path.iterdir()] == ["gradient_norms.jsonl"]


def test_append_rows_after_a_torn_line_loses_no_row(tmp_path):
    path = tmp_path / "gradient_norms.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "gra')
    append_rows(path, [{"step": 3}])
    assert [row["step"] for row in iter_rows(path)] == [1, 3]


# --- columns of a run ---


def test_read_run_returns_columns(tmp_path):
    run = read_run(write_run(tmp_path / "post-adamw-none-seed3", layers=12, growth=2.0, log={"scheduled_lr": 0.05}))
    assert (run.stem, run.seed) == ("post-adamw-none", "3")
    assert run.losses == ([1, 2, 3, 4, 5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert run.learning_rates.values == [0.05] * 5
    assert run.scheduled_rates.values == [0.1] * 5
    assert not run.series("nothing")
    assert run.layers[0] == "embeddings"
    assert list(run.norms["encoder.layer.1"]) == [2 / t for t in range(1, 6)]
    assert run.blocks[1::9] == ["encoder.layer.1", "encoder.layer.10"]  # by number, not by letter
    assert run.ratio() == ([1, 2, 3, 4, 5], pytest.approx([2048.0] * 5))
    assert len(repr(run)) < 200


def test_ratio_of_a_dead_first_block_is_infinite(tmp_path):
    rows = [
        {"step": 1, "grad_norm/h.0": 0.0, "grad_norm/h.1": 1.0},
        {"step": 2, "grad_norm/h.0": None, "grad_norm/h.1": 1.0},
    ]
    append_rows(tmp_path / "gradient_norms.jsonl", rows)
    assert read_run(tmp_path).ratio() == ([1], [inf])


def test_ratio_is_within_one_stack(tmp_path):
    keys = [f"grad_norm/{stack}.{i}" for stack, depth in (("encoder", 3), ("decoder", 2)) for i in range(depth)]
    append_rows(tmp_path / "gradient_norms.jsonl", [{"step": 1} | {key: 2.0**i for i, key in enumerate(keys)}])
    run = read_run(tmp_path)
    assert run.layers == ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]
    assert run.ratio() == ([1], [4.0])


def test_rates_logged_after_the_schedulers_step_belong_to_the_next_update(tmp_path):
    new, old = (
        logged(tmp_path / "new", [1.0, 2.0]),
        write_state(tmp_path / "old", [{"step": 5, "learning_rate": 1.0}], 9),
    )
    assert new.scheduled_rates.steps == [1, 2]
    state = json.loads((old / "trainer_state.json").read_text())
    del state["best_global_step"]  # written since transformers 4.5x
    (old / "trainer_state.json").write_text(json.dumps(state))
    assert read_run(old).scheduled_rates.steps == [6]


def test_nulls_and_text_in_the_log_are_skipped_and_counted(tmp_path):
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": "0.5"}, {"loss": 1.0, "step": 4}]
    folder = write_state(tmp_path, log, 4)
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"] += [None, {"loss": 1.0}]
    (folder / "trainer_state.json").write_text(json.dumps(state))
    run = read_run(folder)
    assert (run.losses.steps, run.unreadable) == ([1, 4], 4)


# --- evaluations ---

CURVE = {
    2: {"eval_loss": 0.5, "eval_accuracy": 0.7},
    4: {"eval_loss": 0.6, "eval_accuracy": 0.77},
    5: {"eval_loss": 0.7, "eval_accuracy": 0.76},
}
FEWER = {"metric_for_best_model": "f1", "greater_is_better": False}
BEST = {"best_metric": 0.77, "best_global_step": 4, "best_model_checkpoint": "x/checkpoint-4"}


def test_best_and_last_evaluation(tmp_path):
    run = recorded(tmp_path / "a", evaluations=CURVE)
    assert run.best() == ("eval_accuracy", 0.77, 4)
    assert run.last() == ("eval_accuracy", 0.76, 5)
    assert run.best("eval_loss") == ("eval_loss", 0.5, 2)
    assert run.results() == {"loss": 0.2, "eval_loss": 0.7, "eval_accuracy": 0.76}


def test_results_are_those_of_the_model_that_was_kept(tmp_path):
    settings = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    run = recorded(tmp_path / "a", evaluations=CURVE, state=BEST, **settings)
    assert run.results() == {"loss": 0.2, "eval_loss": 0.6, "eval_accuracy": 0.77}
    # Evaluated again after training, and saved by `save_metrics`.
    (tmp_path / "a" / "all_results.json").write_text('{"eval_accuracy": 0.75, "eval_runtime": 1.0, "train_loss": 2.0}')
    assert read_run(tmp_path / "a").results() == {"loss": 0.2, "eval_loss": 0.6, "eval_accuracy": 0.75}


@pytest.mark.parametrize(
    ("metrics", "state", "settings", "metric", "best"),
    [
        ([("eval_wer", 30.0), ("eval_wer", 40.0)], {}, {}, "eval_wer", 30.0),
        ([("eval_loss", 2.0), ("eval_loss", 1.0)], {}, {}, "eval_loss", 1.0),
        ([("eval_f1", 0.1), ("eval_f1", 0.2)], {}, FEWER, "eval_f1", 0.1),
        ([("eval_x_f1", 0.5), ("eval_f1", 0.1)], {}, {}, "eval_f1", 0.1),  # the whole before a class
        ([("eval_loss", 2.0), ("eval_odd", 7.0)], {"best_metric": 7.0}, {}, "eval_odd", 7.0),
    ],
)  # fmt: skip
def test_metric_is_the_one_that_selects_the_model(tmp_path, metrics, state, settings, metric, best):
    evaluations = {i: {key: value} for i, (key, value) in enumerate(metrics, 1)}
    run = recorded(tmp_path / "a", evaluations=evaluations, state=state, **settings)
    assert run.best()[:2] == (metric, best)


# --- how a run ended ---


def test_status_needs_evidence(tmp_path):
    assert recorded(tmp_path / "a").status == "finished, 5 updates"
    assert recorded(tmp_path / "b", planned=9, stopped=True).status == "stopped early at update 5 of 9"
    assert recorded(tmp_path / "c", planned=9).status == "unfinished: 5 of 9 updates (still running, or killed)"
    log = [{"step": 500, "loss": 1.0}]
    assert read_run(write_state(tmp_path / "d", log, 520)).status == "checkpoint at update 500 of 520"
    control = {"TrainerControl": {"args": {"should_training_stop": True}}}
    assert read_run(write_state(tmp_path / "e", log, 520, stateful_callbacks=control)).end == "stopped early"


def test_write_run_end_is_evidence_until_the_run_goes_on(tmp_path):
    folder = write_run(tmp_path / "a", planned=9, optim="adamw")
    write_run_end(folder, 5, "interrupted")
    assert read_run(folder).status == "interrupted at update 5 of 9"
    append_rows(folder / "gradient_norms.jsonl", [{"step": 6}])  # resumed, then killed
    assert read_run(folder).end == "unfinished"


def test_an_unfinished_run_is_read_from_its_last_checkpoint(tmp_path):
    folder = write_run(tmp_path / "a", steps=7, planned=20, checkpoint=5)
    write_run(tmp_path / "older", steps=2, planned=20, checkpoint=2)
    (tmp_path / "older" / "checkpoint-2").rename(folder / "checkpoint-2")
    run = read_run(folder)
    assert (run.updates, run.num_training_steps, run.end) == (7, 20, "unfinished")
    (tmp_path / "b").mkdir()
    (folder / "gradient_norms.jsonl").rename(tmp_path / "b" / "gradient_norms.jsonl")  # killed before any checkpoint
    assert (read_run(tmp_path / "b").updates, read_run(tmp_path / "b").status) == (7, "7 updates")
    assert {run.name for run in find_runs(tmp_path)} == {"a", "b", "older"}


def test_checkpoints_of_a_former_run_in_the_same_folder_are_not_read(tmp_path):
    write_run_settings(tmp_path, {}, {}, 20, 0)
    write_state(tmp_path / "checkpoint-20", [{"step": 20, "loss": 1.0}], 20)
    write_run_settings(tmp_path / "checkpoint-20", {}, {}, 20, 0)
    append_rows(tmp_path / "gradient_norms.jsonl", [{"step": 3, "grad_norm": 1.0}])
    assert read_run(tmp_path).updates == 3


def test_set_aside_former_run_moves_its_files(tmp_path, caplog):
    set_aside_former_run(tmp_path)
    assert not caplog.messages
    folder = write_run(tmp_path / "a", optim="adamw")
    set_aside_former_run(folder)
    assert caplog.messages == [f"The files of the former run in {folder} were moved to former_run-1."]
    assert read_run(folder / "former_run-1").losses.values[0] == 1.0
    assert [path.name for path in folder.iterdir()] == ["former_run-1"]
    write_state(folder, [{"step": 1, "loss": 3.0}], 1)
    set_aside_former_run(folder)
    assert (folder / "former_run-2" / "trainer_state.json").is_file()


# --- inputs ---


def test_find_runs_reads_files_checkpoints_and_folders_of_any_depth(tmp_path):
    write_run(tmp_path / "x" / "deep" / "a-seed10")
    write_run(tmp_path / "x" / "deep" / "a-seed2")
    log = [{"step": 500, "loss": 1.0}]
    write_state(tmp_path / "y" / "checkpoint-500", log, 520)
    (write_state(tmp_path / "z", log, 520) / "trainer_state.json").rename(tmp_path / "z" / "mine.json")
    found = find_runs([tmp_path / "x", tmp_path / "y" / "checkpoint-500", tmp_path / "z" / "mine.json", tmp_path / "x"])
    assert [run.name for run in found] == ["a-seed2", "a-seed10", "y/checkpoint-500", "mine.json"]
    assert [run.name for run in find_runs([tmp_path / "y"])] == ["y"]


def test_find_runs_sorts_by_number(tmp_path):
    names = ["lr5e-4-seed2", "lr5e-4-seed10", "lr0.001", "lr1e-2", "lr0.05"]
    for name in reversed(names):
        write_run(tmp_path / name)
    assert [run.name for run in find_runs(tmp_path)] == names


def test_a_recording_of_any_name_is_read(tmp_path):
    append_rows(tmp_path / "norms.jsonl", [{"step": 1, "grad_norm": 1.0}])
    (tmp_path / "data.jsonl").write_text('{"text": "no recording"}\n')
    assert list(read_run(tmp_path).steps) == list(read_run(tmp_path / "norms.jsonl").steps) == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer.*git lfs pull"),
        ("{", "not valid JSON"),
        ("[]", "expected one JSON object"),
        ('{"a": 1}', "holds no log_history"),
        ('{"log_history": null, "global_step": 3}', "holds no log_history"),
        ('{"log_history": [], "global_step": 0, "max_steps": 9}', "holds no update"),
    ],
)
def test_an_unreadable_run_is_named_and_does_not_end_the_comparison(tmp_path, caplog, content, message):
    write_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_runs([tmp_path / "bad"])
    assert [run.name for run in find_runs([tmp_path])] == ["good"]
    assert "Left out: " in caplog.text


@pytest.mark.parametrize("name", ["run_settings.json", "config.json", "all_results.json"])
def test_a_run_is_read_without_the_settings_that_cannot_be(tmp_path, caplog, name):
    folder = write_state(tmp_path, [{"step": 3, "loss": 1.0}], 3)
    (folder / name).write_text("{")
    assert read_run(folder).losses.values == [1.0]
    assert f"{name}: not valid JSON" in caplog.text
    assert "The run is read without it." in caplog.text


def test_settings_of_another_kind_are_passed_over(tmp_path):
    folder = write_state(tmp_path, [{"step": t, "loss": 1.0, "grad_norm": 2.0} for t in range(1, 20)], 19)
    odd = {
        "optim": "adamw",
        "adam_beta2": "auto",
        "warmup_steps": "auto",
        "max_grad_norm": "auto",
        "model_type": "bert",
    }
    (folder / "config.json").write_text(json.dumps(odd))
    assert find(read_run(folder)) == []


def test_a_folder_without_runs_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=r"trainer_state.json is missing"):
        find_runs([tmp_path / "runs"])
    with pytest.raises(ValueError, match=r"no such file or folder. Did you mean .*runs\?"):
        find_runs([tmp_path / "run"])


def test_as_runs_takes_paths_runs_and_trainers(tmp_path):
    run = recorded(tmp_path / "a")
    state = SimpleNamespace(log_history=[{"step": 2, "loss": 9.0}], global_step=2, max_steps=5, best_global_step=None)
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path / "a")), state=state)
    assert find_runs(run) == find_runs([run]) == [run]
    assert find_runs(str(tmp_path / "a"))[0].losses == run.losses
    assert find_runs(trainer)[0].losses.values == [9.0]


def test_reading_imports_neither_torch_nor_transformers_nor_a_library_that_draws(tmp_path):
    write_run(tmp_path / "a", loss=lambda t: 10.0**t)
    heavy = ("torch", "transformers", "numpy", "plotly", "matplotlib", "jinja2")
    code = f"""
import sys
from hf_warmup.report.__main__ import main
main([{str(tmp_path / "a")!r}, "--text", "--csv", {str(tmp_path / "a.csv")!r}])
print("imported:", [name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "PROBLEM" in done.stdout
    assert done.stdout.endswith("imported: []\n")
