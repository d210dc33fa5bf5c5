"""Run folders in, figures out."""

from __future__ import annotations

import json

import pytest

from hf_warmup.report import draw_comparison, mean_and_spread, plot_ratio, read_run, read_runs


def write_run(folder, layers=3, steps=5, growth=1.0, scheduled=False):
    """A run whose loss is 1/t and whose layer i has the norm growth^i / t."""
    folder.mkdir(parents=True)
    log = [{"loss": 1 / t, "learning_rate": 0.1, "step": t} for t in range(1, steps + 1)]
    if scheduled:
        log = [{**entry, "scheduled_lr": 0.05} for entry in log]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*log, {"eval_loss": 1.0, "step": steps}]}))
    lines = [
        {"step": t, "grad_norm": 1.0, "grad_norm/embeddings": 1.0}
        | {f"grad_norm/encoder.layer.{i}": growth**i / t for i in range(layers)}
        for t in range(1, steps + 1)
    ]
    (folder / "gradient_norms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_is_read(tmp_path):
    write_run(tmp_path / "post-adamw-none-seed3", layers=12, growth=2.0, scheduled=True)
    run = read_run(tmp_path / "post-adamw-none-seed3")
    assert run.arm == "post-adamw-none"
    assert run.series("loss") == ([1, 2, 3, 4, 5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert run.series("scheduled_lr", "learning_rate")[1] == [0.05] * 5
    assert run.series("nothing") == ([], [])
    assert run.blocks[1::9] == ["grad_norm/encoder.layer.1", "grad_norm/encoder.layer.10"]  # by number, not by letter
    assert run.ratio() == ([1, 2, 3, 4, 5], pytest.approx([2048.0] * 5))


def test_a_missing_run_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"trainer_state.json is missing"):
        read_run(tmp_path)


@pytest.mark.parametrize(("runs", "layers"), [(1, 12), (7, 48), (2, 0)])
def test_figures_of_any_number_of_runs(tmp_path, runs, layers):
    for i in range(runs):
        write_run(tmp_path / f"arm{i}-seed0", layers=layers, growth=2.0)
    figures = draw_comparison(read_runs(tmp_path), tmp_path)
    assert [path.name for path in figures] == [
        "learning_rate.png", "loss.png", "gradient_norms.png", "gradient_norm_ratio.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


def test_a_run_cut_short_and_a_norm_that_was_not_finite_are_drawn(tmp_path):
    write_run(tmp_path / "a")
    with (tmp_path / "a" / "gradient_norms.jsonl").open("a") as file:
        record = {"step": 6, "grad_norm": None, "grad_norm/encoder.layer.0": None, "nonfinite": ["encoder.layer.0"]}
        file.write(json.dumps(record) + "\n")
        file.write('{"step": 7, "grad_')
    run = read_run(tmp_path / "a")
    assert len(run.gradient_norms) == 6
    assert run.ratio()[0] == [1, 2, 3, 4, 5]
    draw_comparison([run], tmp_path)


def test_the_danger_zone_is_marked_where_a_run_is_in_it(tmp_path):
    write_run(tmp_path / "calm", growth=1.1)
    write_run(tmp_path / "stalling", growth=20.0)
    texts = {
        name: [text.get_text() for text in plot_ratio([read_run(tmp_path / name)]).axes[0].texts]
        for name in ("calm", "stalling")
    }
    assert texts == {"calm": [], "stalling": ["early sign of stalling"]}


def test_labels_are_as_people_write_them(tmp_path):
    write_run(tmp_path / "post-adamw-none-lr2e-3-seed0")
    write_run(tmp_path / "my-run")
    axes = plot_ratio(read_runs(tmp_path)).axes[0]
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert labels == {"Post-LN, adamw, no warmup, lr 2e-3", "my-run"}


def test_mean_and_spread():
    assert mean_and_spread([1.0]) == "1.000"
    assert mean_and_spread([1, 2, 3], digits=0) == "2 ± 1"
