"""Run folders in, figures out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from hf_warmup.report import (
    differing_settings,
    draw_comparison,
    mean_and_spread,
    plot_gradient_norms,
    plot_loss,
    plot_ratio,
    read_run,
    read_runs,
)
from hf_warmup.report.__main__ import main
from hf_warmup.report.comparison import by_configuration, common_name, names_of
from hf_warmup.report.figures import chosen_updates, draw_curves, draw_layers, draw_run, thin
from hf_warmup.report.page import _arms, draw_page

from .recorded import recorded, write_run


def test_a_run_is_read(tmp_path):
    write_run(tmp_path / "post-adamw-none-seed3", layers=12, growth=2.0, log={"scheduled_lr": 0.05})
    run = read_run(tmp_path / "post-adamw-none-seed3")
    assert run.stem == "post-adamw-none"
    assert run.losses == ([1, 2, 3, 4, 5], [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert run.learning_rates[1] == [0.05] * 5
    assert run.series("nothing") == ([], [])
    assert run.blocks[1::9] == ["encoder.layer.1", "encoder.layer.10"]  # by number, not by letter
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
    assert len(run.steps) == 6
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
    assert mean_and_spread([1.0, float("nan")]) == "nan"  # a seed that diverged


def test_runs_are_read_in_the_order_of_their_names_with_numbers_as_such(tmp_path):
    names = ["lr5e-4-seed2", "lr5e-4-seed10", "lr0.001", "lr1e-2", "lr0.05"]
    for name in reversed(names):
        write_run(tmp_path / name)
    assert [run.name for run in read_runs(tmp_path)] == names


def test_more_arms_than_colours_are_told_apart_and_alike_in_figures_and_page(tmp_path):
    runs = [recorded(tmp_path / f"arm{i}-seed{seed}") for i in range(20) for seed in (0, 1)]
    lines = plot_loss(runs).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines[::2]}) == 20
    assert all(a.get_color() == b.get_color() for a, b in zip(lines[::2], lines[1::2], strict=True))
    entries = [line for line in draw_curves(runs).data if line.showlegend is not False]
    assert [line.line.color for line in entries] == [line.get_color() for line in lines[::2]]
    assert len({(line.line.color, line.line.dash) for line in entries}) == 20


def test_the_zone_of_stalling_has_no_arms_colour(tmp_path):
    runs = [recorded(tmp_path / f"arm{i}", growth=20.0) for i in range(8)]
    figure = draw_curves(runs)
    (zone,) = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert zone.fillcolor not in {line.line.color for line in figure.data}
    (patch,) = plot_ratio(runs[:1]).axes[0].patches
    assert len(set(patch.get_facecolor()[:3])) == 1  # grey


def test_panels_of_runs_that_ended_at_different_updates_compare(tmp_path):
    runs = [recorded(tmp_path / "a", steps=5), recorded(tmp_path / "b", steps=9)]
    panels = plot_gradient_norms(runs).axes[:2]
    assert [axes.get_xlim() for axes in panels] == [(0.5, 9.5)] * 2
    assert [axes.images[0].get_extent()[:2] for axes in panels] == [[0.5, 5.5], [0.5, 9.5]]


def test_what_folders_are_called_together(tmp_path):
    assert common_name([tmp_path / "x" / "a"]) == "a"
    assert common_name([tmp_path / "x" / "a", tmp_path / "x" / "b"]) == "x"
    assert common_name([tmp_path / "x", tmp_path / "x" / "b"]) == "x"
    assert common_name(["/a", "/b"]) == "Runs"


def test_a_run_cut_short_is_read_from_its_last_checkpoint(tmp_path):
    folder = write_run(tmp_path / "a", steps=7, planned=20, checkpoint=5)
    write_run(tmp_path / "older", steps=2, planned=20, checkpoint=2)
    (tmp_path / "older" / "checkpoint-2").rename(folder / "checkpoint-2")
    run = read_run(folder)
    assert (run.updates, run.num_training_steps, run.cut_short) == (7, 20, True)
    assert run.status == "unfinished: 7 of 20 updates (still running, or killed)"
    (tmp_path / "b").mkdir()
    (folder / "gradient_norms.jsonl").rename(tmp_path / "b" / "gradient_norms.jsonl")  # crashed before any checkpoint
    assert (read_run(tmp_path / "b").updates, read_run(tmp_path / "b").status) == (7, "7 updates")
    assert {run.name for run in read_runs(tmp_path)} == {"a", "b", "older"}


def test_a_run_that_ended_itself_early_was_not_cut_short(tmp_path):
    folder = write_run(tmp_path / "a", steps=7, planned=20, stopped=True)
    assert (read_run(folder).cut_short, read_run(folder).status) == (False, "stopped early at update 7 of 20")
    # Resumed, then killed: the state of its first end is older than what was recorded.
    state = json.loads((folder / "trainer_state.json").read_text())
    state = {"log_history": [entry for entry in state["log_history"] if entry["step"] <= 4], "global_step": 4}
    (folder / "trainer_state.json").write_text(json.dumps(state | {"max_steps": 20}))
    assert (read_run(folder).cut_short, read_run(folder).status) == (
        True,
        "unfinished: 7 of 20 updates (still running, or killed)",
    )


def test_a_file_that_is_no_json_is_one_sentence(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"trainer_state.json: not valid JSON"):
        read_run(folder)


def test_results_are_the_last_values_without_timings(tmp_path):
    assert recorded(tmp_path / "a", steps=4).results() == {"loss": 1 / 4, "eval_loss": 1.0}


def test_the_ratio_is_within_one_stack(tmp_path):
    keys = [f"grad_norm/{stack}.{i}" for stack, depth in (("encoder", 3), ("decoder", 2)) for i in range(depth)]
    line = {"step": 1, "grad_norm": 1.0} | {key: 2.0**i for i, key in enumerate(keys)}
    (tmp_path / "gradient_norms.jsonl").write_text(json.dumps(line) + "\n")
    run = read_run(tmp_path)
    assert run.layers == ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]
    assert run.ratio() == ([1], [4.0])


def test_settings_that_differ(tmp_path):
    shared = {"optim": "adamw", "output_dir": "somewhere", "seed": 0, "accelerator_config": {}}
    runs = [
        recorded(tmp_path / "a", learning_rate=1e-3, zeta=1, **shared),
        recorded(tmp_path / "b", learning_rate=2e-3, zeta=2, **shared | {"seed": 1, "output_dir": "elsewhere"}),
        recorded(tmp_path / "unknown"),
    ]
    assert differing_settings(runs) == ["learning_rate", "zeta"]
    assert (runs[1].seed, runs[2].seed) == ("1", "")


def test_arms_of_one_name_in_two_folders_are_kept_apart(tmp_path):
    runs = [recorded(tmp_path / where / f"a-seed{seed}") for where in ("x", "y") for seed in (0, 1)]
    assert {arm: [run.seed for run in seeds] for arm, seeds in by_configuration(runs).items()} == {
        "x/a": ["0", "1"],
        "y/a": ["0", "1"],
    }
    assert list(names_of(runs).values()) == ["x/a-seed0", "x/a-seed1", "y/a-seed0", "y/a-seed1"]


def test_thinning_keeps_the_ends_and_every_spike():
    steps = list(range(1, 5001))
    values = [100.0 if step in (777, 4242) else -100.0 if step == 2000 else step / 5000 for step in steps]
    kept, thinned = thin(steps, values, 200)
    assert len(kept) <= 210
    assert kept[0] == 1
    assert kept[-1] == 5000
    assert {777, 2000, 4242} <= set(kept)
    assert all(thinned[i] == values[step - 1] for i, step in enumerate(kept))
    assert kept == sorted(set(kept))
    assert thin(steps[:100], values[:100], 200) == (steps[:100], values[:100])
    assert thin([1, 2, 3], [1.0, float("nan"), 3.0], 10) == ([1, 3], [1.0, 3.0])


def test_the_slider_has_every_early_update_and_at_most_a_hundred(tmp_path):
    run = recorded(tmp_path / "a", steps=5000)
    updates = chosen_updates([run], 100)
    assert len(updates) <= 100
    assert updates[:5] == [1, 2, 3, 4, 5]
    assert updates[-1] == 5000
    assert any(18 <= update <= 22 for update in updates)


def test_the_heat_map_at_an_update(tmp_path):
    runs = [recorded(tmp_path / "a", growth=10.0), recorded(tmp_path / "short", steps=2, planned=5, layers=2)]
    figure = draw_layers(runs)
    assert list(figure.data[0].y) == ["embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2"]
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["1", "2", "3", "4", "5"]
    (first,) = steps[0].args[0]["z"]
    assert [list(row) for row in first] == [[0, 0], [0, 0], [1, 0], [2, None]]  # powers of ten
    (last,) = steps[4].args[0]["z"]
    assert [row[1] for row in last] == [None] * 4  # the second run was over


def test_the_heat_map_names_every_arm_once_in_the_middle_of_its_seeds(tmp_path):
    names = ["a-seed0", "a-seed1", "b-seed0", "c-seed0", "c-seed1", "c-seed2"]
    runs = [recorded(tmp_path / name) for name in names]
    figure = draw_layers(runs)
    assert list(figure.data[0].x) == names
    axis = figure.layout.xaxis
    assert dict(zip(axis.ticktext, axis.tickvals, strict=True)) == {"a": 0.5, "b": 2, "c": 4}
    assert [line.x0 for line in figure.layout.shapes] == [1.5, 2.5]
    assert [trace.name for trace in draw_run(runs).data] == names


def test_both_learning_rates_of_an_optimizer_that_warms_up_by_itself(tmp_path):
    figure = draw_curves([recorded(tmp_path / "radam-none", log={"scheduled_lr": 0.05})])
    lines = {line.meta["name"]: list(line.y) for line in figure.data if line.meta and line.yaxis == "y"}
    assert lines == {"radam-none": [0.05] * 5, "radam-none, of the schedule": [0.1] * 5}
    assert [line.name for line in figure.data if line.showlegend is not False] == ["radam-none"]


class Links(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.fetched += [given[key] for key in ("src", "href") if given.get(key) and key in given]


@pytest.mark.parametrize(("runs", "layers"), [(1, 12), (50, 48), (2, 0)])
def test_the_page_of_any_number_of_runs_stands_alone(tmp_path, runs, layers):
    folders = [recorded(tmp_path / f"arm{i // 3}-seed{i % 3}", layers=layers, steps=30) for i in range(runs)]
    page = draw_page(folders, "a <b> title")
    assert Links(page).fetched == ["data:,"]
    assert "a &lt;b&gt; title" in page
    assert page.count('type="checkbox"') == runs
    assert len(page) < 12e6


def test_the_page_has_the_results_of_each_arm(tmp_path):
    loss = {"a-seed0": 0.8, "a-seed1": 0.82, "b-seed0": 0.5}
    runs = [recorded(tmp_path / name, loss=lambda t, last=last: last) for name, last in loss.items()]
    rows = {row["name"]: row["cells"] for row in _arms(runs)["rows"]}
    assert _arms(runs)["columns"] == ["loss", "eval_loss", "updates", "seeds"]
    assert rows == {"a": ["0.810 ± 0.014", "1.000 ± 0.000", "5 ± 0", 2], "b": ["0.500", "1.000", "5", 1]}
    assert 'id="arms"' in draw_page(runs)
    assert 'id="arms"' not in draw_page(runs[1:])  # one seed an arm: the table of runs says it all


@pytest.mark.parametrize(("runs", "opened"), [(12, True), (13, False)])
def test_many_runs_stand_behind_their_arms(tmp_path, runs, opened):
    page = draw_page([recorded(tmp_path / f"a-seed{seed}") for seed in range(runs)])
    assert ("<details open>" in page) is opened


def test_a_name_cannot_break_out_of_the_page(tmp_path):
    page = draw_page([recorded(tmp_path / "<img src=x onerror=alert(1)>"), recorded(tmp_path / "b")])
    assert "<img" not in page


def test_command_line_draws_and_ends_with_words(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"stuck-seed{seed}", steps=30, growth=30.0, onset=2, loss=lambda t: 3.3)
    write_run(tmp_path / "fine", steps=30)
    runs = [tmp_path / "runs", tmp_path / "fine", tmp_path / "runs" / "stuck-seed0"]  # one of them twice
    main([*map(str, runs), "--output_dir", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert ": 3 runs.\n" in out
    assert f"<title>{tmp_path.name}</title>" in (tmp_path / "out" / "report.html").read_text()
    assert out.splitlines()[2].startswith("- stuck: The gradient of encoder.layer.0 is 900 times smaller")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "gradient_norm_ratio.png", "gradient_norms.png", "learning_rate.png", "loss.png", "report.html",
    ]  # fmt: skip
    main([str(tmp_path / "fine"), "--output_dir", str(tmp_path / "out2")])
    assert "no reason to worry" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "sentence"), [("nothing", "there is no such file or folder"), (".", "trainer_state.json is missing")]
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys, folder, sentence):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / folder), "--output_dir", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["plotly", "matplotlib"])
def test_a_missing_library_is_one_sentence(tmp_path, capsys, monkeypatch, module):
    real = importlib.util.find_spec
    monkeypatch.setattr("hf_warmup.report.figures.find_spec", lambda name: None if name == module else real(name))
    with pytest.raises(SystemExit) as stop:
        main([str(write_run(tmp_path / "a")), "--output_dir", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert f"{module} is missing: pip install 'hf-warmup[plot]'" in capsys.readouterr().err


def test_reading_loads_nothing_that_draws():
    code = "import sys, hf_warmup.report; print([m for m in ('plotly', 'matplotlib', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['jinja2']")  # torch's own
