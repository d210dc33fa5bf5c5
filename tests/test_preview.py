"""The previewed curve is the trained one; previews in Python, in a notebook and on the command line."""

from __future__ import annotations

import pytest
import torch

from hf_warmup import OPTIMIZERS, create_optimizer_and_scheduler, preview_schedule
from hf_warmup.preview import MAX_POINTS, main
from hf_warmup.schedules import DECAYS, WARMUPS

from .testing_utils import arguments, run


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
def test_preview_schedule_returns_the_learning_rates_of_a_stepped_optimizer(tmp_path, recipe):
    args, model = arguments(tmp_path, **recipe), torch.nn.Linear(1, 1)
    (curve,) = preview_schedule(args, 8).curves
    optimizer, scheduler = create_optimizer_and_scheduler(model, args, 8)
    lrs = []
    for _ in range(8):
        model(torch.ones(1)).backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lrs[-1] = optimizer.param_groups[0].get("scheduled_lr", lrs[-1])
        scheduler.step()
    assert curve.updates == list(range(1, 9))
    assert curve.lrs == pytest.approx(lrs, rel=1e-12)  # equal but for the order of the multiplications


def test_preview_schedule_returns_the_learning_rates_of_training(tmp_path):
    recipe = {"optim": "radam", "lr_scheduler_type": "cosine", "warmup_type": "exponential", "warmup_steps": 3}
    (curve,) = preview_schedule(arguments(tmp_path, **recipe)).curves
    assert curve.lrs == pytest.approx([entry["scheduled_lr"] for entry in run(tmp_path, **recipe)], rel=1e-12)


@pytest.mark.parametrize("warmup_type", [None, "linear"])
def test_preview_schedule_shows_a_metric_schedule_until_its_metric_acts(tmp_path, warmup_type):
    recipe = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 100}
    args = arguments(tmp_path, **recipe, warmup_type=warmup_type, warmup_steps=4 if warmup_type else 0)
    (curve,) = preview_schedule(args).curves
    assert curve.lrs == pytest.approx([0.01 * min(1.0, t / 4 if warmup_type else 1.0) for t in range(1, 9)])
    assert curve.label.endswith("until its metric acts")


def test_preview_schedule_samples_a_long_run_with_its_corners(tmp_path):
    T = 10 * MAX_POINTS + 7
    kwargs = {"lr_scheduler_type": "linear", "warmup_type": "constant", "learning_rate": 0.5}
    (curve,) = preview_schedule(arguments(tmp_path, max_steps=T, warmup_steps=12345, **kwargs)).curves
    assert len(curve.updates) < MAX_POINTS + 10
    assert {1, 12345, 12346, T} <= set(curve.updates)
    for update, lr in zip(curve.updates, curve.lrs, strict=True):
        decay = min(1.0, (T - (update - 1)) / (T - 12345))
        assert lr == pytest.approx(0.5 * (0.1 if update <= 12345 else 1.0) * decay, rel=1e-12)
    assert curve.peak == (0.5, 12346)


def test_preview_schedule_compares_schedules_with_otherwise_equal_arguments(tmp_path):
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
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("noam", {"d_model": 4})  # unchanged


def test_preview_schedule_compares_import_paths(tmp_path, monkeypatch):
    (tmp_path / "previewed_curves.py").write_text(
        "def square(step, *, num_warmup_steps):\n    return min(1.0, (step + 1) / num_warmup_steps) ** 2\n\n\n"
        "def half(step):\n    return 0.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = "previewed_curves"
    names = [f"{path}:half", f"linear:{path}:half", f"{path}:square:constant", f"{path}:square:{path}:half"]
    args = arguments(tmp_path, learning_rate=1.0, warmup_steps=2, max_steps=3)
    curves = preview_schedule(args, compare=names).curves[1:]
    # without a warmup_type, a decay of the user's own follows a linear warmup
    assert [curve.lrs for curve in curves] == [[0.25, 0.5, 0.5], [0.25, 0.5, 0.5], [0.25, 1.0, 1.0], [0.125, 0.5, 0.5]]


def test_preview_schedule_shows_each_learning_rate(tmp_path):
    args = arguments(
        tmp_path,
        learning_rate=0.8,
        lr_scheduler_type="constant",
        layerwise_lr_decay=0.5,
        learning_rate_mapping={"classifier": 2.0},
    )
    preview = preview_schedule(args, num_hidden_layers=2)
    assert {curve.label: curve.lrs[0] for curve in preview.curves} == {
        "constant, head": 0.8,
        "constant, block.1": 0.4,
        "constant, block.0": 0.2,
        "constant, embeddings": 0.1,
        "constant, classifier": 2.0,
    }


def test_schedule_preview_draws_a_table_and_a_sketch(tmp_path):
    args = arguments(tmp_path, max_steps=100, warmup_steps=50, learning_rate=1.0)
    preview = preview_schedule(args, compare=["cosine"])
    rows = [row.split() for row in preview.table().splitlines()]
    # transformers' numbers: (t - 1) / 50, then (100 - (t - 1)) / 50
    assert rows[0] == ["lr", "at", "update", "1", "25", "50", "75", "100", "peak", "at", "update"]
    assert rows[1] == ["linear,", "warmup", "50", "0", "0.48", "0.98", "0.52", "0.02", "1", "51"]
    sketch = preview.sketch(width=41, height=5).splitlines()
    assert [line.index("|") for line in sketch[:5]] == [2] * 5
    assert "".join(line[3:].ljust(41)[20] for line in sketch[:5]).strip() == "*"  # one row at the peak,
    assert sketch[0][3 + 20] == "*"  # which is in the middle and at the top
    assert sketch[-2:] == ["   * linear, warmup 50", "   o cosine, warmup 50"]
    assert repr(preview) == str(preview) == f"{preview.table()}\n\n{preview.sketch()}"


def test_schedule_preview_is_a_picture_in_a_notebook(tmp_path, monkeypatch):
    preview = preview_schedule(arguments(tmp_path))
    assert preview._repr_png_().startswith(PNG)
    monkeypatch.setattr("hf_warmup.report.figures.find_spec", lambda name: None)  # as if matplotlib were missing
    assert preview._repr_png_() is None


def test_preview_command_writes_a_picture_and_prints_warnings(tmp_path, capsys):
    flags = "--lr_scheduler_type noam --warmup_steps 4 --max_steps 16 --compare linear cosine --learning_rate 1 --bf16"
    main([*flags.split(), "--output", str(tmp_path / "a.png")])
    out, err = capsys.readouterr()
    assert " ".join(out.splitlines()[1].split()) == "noam, warmup 4 0.25 1 0.707 0.577 0.5 1 4"
    assert out.endswith(f"Wrote {tmp_path / 'a.png'}\n")
    assert "warning: learning_rate=1 gives Noam a peak of 1, outside" in err
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_preview_command_reads_a_file_and_flags_and_draws_in_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "flags.yaml"
    path.write_text("lr_scheduler_type: sine\nwarmup_steps: 4\nmax_steps: 99\ncompare: [linear, 'radam:noam']\n")
    main([str(path), "--max_steps", "16"])
    out = capsys.readouterr().out
    assert "|" in out
    assert " + radam:noam, warmup 4" in out
    assert "update 16\n" in out
    assert list(tmp_path.iterdir()) == [path]  # no output folder is created


def test_preview_command_ignores_flags_of_a_training_script(tmp_path, capsys):
    line = "--model_name_or_path bert-base-uncased --task_name sst2 --do_train --do_eval --max_seq_length 64"
    line += f" --output_dir {tmp_path} --lr_scheduler_type noam --warmup_steps 4 --max_steps 16 --learning_rate 0.1"
    main(line.split())
    out, err = capsys.readouterr()
    assert "noam, warmup 4" in out
    assert err.startswith("warning: ignoring --model_name_or_path, --task_name, --max_seq_length")


def test_preview_command_prints_short_help(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m hf_warmup.preview [FILE.yaml] [--FLAG VALUE ...]\n")
    assert out.index("\n  --compare") < out.index("\n  --warmup_type") < out.index("--help-all")
    assert len(out.splitlines()) < 80


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr_scheduler_type noam", "The length of the run is unknown: the number of updates in num_train_epochs=3 "),
        ("--max_steps 9 --lr_scheduler_type nome", "lr_scheduler_type='nome' is unknown. Did you mean 'noam'"),
        ("--max_steps 9 --compare cosin", "lr_scheduler_type='cosin' is unknown. Did you mean 'cosine'"),
        ("--max_steps 9 --compare liner:cosine", "warmup_type='liner' is unknown. Did you mean 'linear'"),
        ("--max_steps 9 --compare cosine:", "lr_scheduler_type='' is unknown"),
        ("--max_steps 9 --compare nowhere:curve", "lr_scheduler_type='nowhere:curve': importing 'nowhere' failed"),
        ("--max_steps 9 --warmup_steps 10", "warmup_steps=10: expected at most max_steps=9"),
        ("--num_training_steps 0", "num_training_steps=0: expected an integer in [1, inf)"),
        ("--max_steps 9 --warmup_step 3", "--warmup_step is not an argument. Did you mean --warmup_steps?"),
        ("--max_steps 9 --output nowhere/a.png", "nowhere/a.png: No such file or directory."),
        ("--max_steps 9 --num_training_steps 12", "num_training_steps=12: expected max_steps=9"),
        ("--max_steps 9 --output a.pngg", "Format 'pngg' is not supported"),
        ("--max_steps 9 --warmup_steps 3 --optim adam_warmup --compare linear:cosine", "warm"),
        ("--lr_scheduler_type reduce_lr_on_plateau --max_steps 9", "requires an eval strategy"),
    ],
)
def test_preview_command_exits_with_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags.split())
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
