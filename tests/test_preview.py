"""The curve seen is the curve trained; in Python, in a notebook and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hf_warmup import OPTIMIZERS, WarmupTrainer, preview_schedule
from hf_warmup.preview import MAX_POINTS, main
from hf_warmup.schedules import DECAYS, WARMUPS

from .testing_utils import arguments, examples, run, tiny_bert, train


PNG = b"\x89PNG"
RECIPES = [
    *({"lr_scheduler_type": name, "warmup_steps": 3} for name in [*DECAYS, "linear", "cosine", "inverse_sqrt"]),
    *({"lr_scheduler_type": "cosine", "warmup_type": name, "warmup_steps": 3} for name in WARMUPS),
    *({"optim": name, "warmup_steps": 0.5} for name in OPTIMIZERS),
    {"optim": "radam", "optim_args": "degenerated_to_sgd=true", "warmup_type": "untuned_exponential"},
    {"lr_scheduler_type": "noam", "warmup_steps": 4, "lr_scheduler_kwargs": {"d_model": 512}, "learning_rate": 1.0},
    {"warmup_epochs": 0.5, "max_steps": -1, "num_train_epochs": 1},
    {"optim": "adafactor", "lr_scheduler_type": "power", "warmup_steps": 2},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(map(str, recipe.values())))
def test_the_curve_seen_is_the_curve_trained(tmp_path, recipe):
    (curve,) = preview_schedule(arguments(tmp_path, **recipe), 8).curves
    log = run(tmp_path, **recipe)
    assert curve.updates == [entry["step"] for entry in log] == list(range(1, 9))
    # exactly, but for what a float32 parameter group may round
    assert curve.lrs == pytest.approx([entry.get("scheduled_lr", entry["learning_rate"]) for entry in log], rel=1e-12)


@pytest.mark.parametrize("warmup_type", [None, "linear"])
def test_a_schedule_that_follows_a_metric_is_shown_until_it_acts(tmp_path, warmup_type):
    recipe = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 100}
    args = arguments(tmp_path, **recipe, warmup_type=warmup_type, warmup_steps=4 if warmup_type else 0)
    (curve,) = preview_schedule(args).curves
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8))
    assert curve.lrs == [entry["learning_rate"] for entry in train(trainer)]
    assert "until its metric acts" in curve.label


def test_a_long_run_is_sampled_with_its_corners(tmp_path):
    T = 10 * MAX_POINTS + 7
    kwargs = {"lr_scheduler_type": "linear", "warmup_type": "constant", "learning_rate": 0.5}
    (curve,) = preview_schedule(arguments(tmp_path, max_steps=T, warmup_steps=12345, **kwargs)).curves
    assert len(curve.updates) < MAX_POINTS + 10
    assert {1, 12345, 12346, T} <= set(curve.updates)
    for update, lr in zip(curve.updates, curve.lrs, strict=True):
        decay = min(1.0, (T - (update - 1)) / (T - 12345))
        assert lr == pytest.approx(0.5 * (0.1 if update <= 12345 else 1.0) * decay, rel=1e-12)
    assert curve.peak == (0.5, 12346)


def test_other_schedules_beside_it_keep_the_flags(tmp_path):
    kwargs = {"lr_scheduler_type": "noam", "warmup_steps": 3, "lr_scheduler_kwargs": {"d_model": 4}}
    args = arguments(tmp_path, **kwargs)
    other = arguments(tmp_path, optim="radam", warmup_steps=2)
    preview = preview_schedule(args, compare=["linear", "exponential:cosine", other])
    labels = ["noam, warmup 3", "linear, warmup 3", "exponential:cosine, warmup 3", "linear, warmup 2, radam"]
    assert [curve.label for curve in preview.curves] == labels
    alone = [
        {"lr_scheduler_type": "linear", "warmup_steps": 3},
        {"lr_scheduler_type": "cosine", "warmup_type": "exponential", "warmup_steps": 3},
    ]
    for curve, flags in zip(preview.curves[1:], alone, strict=False):
        assert curve.lrs == preview_schedule(arguments(tmp_path, **flags)).curves[0].lrs
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("noam", {"d_model": 4})  # left as they were


def test_text_and_pictures(tmp_path, monkeypatch):
    args = arguments(tmp_path, max_steps=100, warmup_steps=50, learning_rate=1.0)
    preview = preview_schedule(args, compare=["cosine"])
    rows = [row.split() for row in preview.table().splitlines()]
    # transformers': (t - 1) / 50, then (100 - (t - 1)) / 50
    assert rows[0] == ["lr", "at", "update", "1", "25", "50", "75", "100", "peak", "at", "update"]
    assert rows[1] == ["linear,", "warmup", "50", "0", "0.48", "0.98", "0.52", "0.02", "1", "51"]
    sketch = preview.sketch(width=41, height=5).splitlines()
    assert [line.index("│") for line in sketch[:5]] == [2] * 5
    assert "".join(line[3:].ljust(41)[20] for line in sketch[:5]).strip() == "*"  # one row at the peak,
    assert sketch[0][3 + 20] == "*"  # which is in the middle and at the top
    assert sketch[-2:] == ["   * linear, warmup 50", "   o cosine, warmup 50"]
    assert str(preview) == f"{preview.table()}\n\n{preview.sketch()}"
    assert preview._repr_png_().startswith(PNG)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    assert preview._repr_png_() is None
    with pytest.raises(ValueError, match="needs matplotlib"):
        preview.figure()


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "hf_warmup.preview", "--lr_scheduler_type", "noam", "--warmup_steps", "4"]
    command += ["--max_steps", "16", "--compare", "linear", "cosine", "--learning_rate", "1", "--bf16"]
    process = subprocess.run([*command, "--output", str(tmp_path / "a.png")], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert " ".join(process.stdout.splitlines()[1].split()) == "noam, warmup 4 0.25 1 0.707 0.577 0.5 1 4"
    assert process.stdout.endswith(f"Wrote {tmp_path / 'a.png'}\n")
    assert "warning: learning_rate=1 gives Noam a peak of 1, outside" in process.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_the_command_draws_into_the_terminal_and_reads_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "flags.yaml"
    path.write_text("lr_scheduler_type: sine\nwarmup_steps: 4\nmax_steps: 16\ncompare: [linear, 'radam:noam']\n")
    main([str(path)])
    out = capsys.readouterr().out
    assert "│" in out
    assert "x" not in out.split("└")[0]
    assert " + radam:noam, warmup 4" in out
    assert list(tmp_path.iterdir()) == [path]  # no output folder is made


def test_the_training_commands_flags(tmp_path, capsys):
    line = "--model_name_or_path bert-base-uncased --task_name sst2 --do_train --do_eval --max_seq_length 64"
    line += f" --output_dir {tmp_path} --lr_scheduler_type noam --warmup_steps 4 --max_steps 16 --learning_rate 0.1"
    main(line.split())
    by_flags = capsys.readouterr().out
    assert "noam, warmup 4" in by_flags
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"model_name_or_path": "a", "pad_to_max_length": False, "lr_scheduler_type": "noam",
                                "warmup_steps": 4, "max_steps": 16, "learning_rate": 0.1}))  # fmt: skip
    main([str(path)])
    assert capsys.readouterr().out == by_flags


def test_the_command_shows_what_training_would_say(capsys, caplog):
    main(["--optim", "adam_warmup", "--max_steps", "9", "--compare", "cosine"])
    assert capsys.readouterr().err.count("warning: AdamWarmup with warmup_steps=0 does not warm up") == 1
    main(["--warmup_type", "linear", "--max_steps", "9"])
    assert "warmup_type='linear' has no effect because num_warmup_steps is 0" in caplog.text


def test_one_name_to_compare_with_is_a_list(tmp_path):
    with pytest.raises(ValueError, match=r"^compare='noam': expected a list, such as \['noam'\]\.$"):
        preview_schedule(arguments(tmp_path), compare="noam")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--lr_scheduler_type noam", "max_steps=-1: expected the run's length in updates; num_train_epochs=3 becomes"),
        ("--max_steps 9 --lr_scheduler_type nome", "lr_scheduler_type='nome' is unknown. Did you mean 'noam'"),
        ("--max_steps 9 --compare cosin", "lr_scheduler_type='cosin' is unknown. Did you mean 'cosine'"),
        ("--max_steps 9 --compare liner:cosine", "warmup_type='liner' is unknown. Did you mean 'linear'"),
        ("--max_steps 9 --compare cosine:", "lr_scheduler_type='' is unknown"),
        ("--max_steps 9 --warmup_steps 10", "warmup_steps=10: expected at most max_steps=9"),
        ("--num_training_steps 0", "num_training_steps=0: expected an integer in [1, inf)"),
        ("--max_steps 9 --warmup_step 3", "--warmup_step is no argument. Did you mean --warmup_steps?"),
        ("--max_steps 9 --output nowhere/a.png", "output='nowhere/a.png': there is no folder nowhere."),
        ("--max_steps 9 --num_training_steps 12", "num_training_steps=12: expected max_steps=9"),
        ("--max_steps 9 --output a.pngg", "Format 'pngg' is not supported"),
        ("--max_steps 9 --optim adam_warmup --compare linear:cosine", "the optimizer warms up already"),
        ("--lr_scheduler_type reduce_lr_on_plateau --max_steps 9", "requires an eval strategy"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags.split())
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
