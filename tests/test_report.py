"""`hf_warmup.report`: runs compared as text, figures, page, table, and on the command line."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
from html.parser import HTMLParser

import pytest

from hf_warmup.report import (
    by_configuration,
    differing_settings,
    draw_comparison,
    find_runs,
    mean_and_spread,
    plot_gradient_norms,
    plot_loss,
    plot_ratio,
    read_run,
    to_dataframe,
)
from hf_warmup.report.__main__ import main
from hf_warmup.report.comparison import common_name, names_of
from hf_warmup.report.figures import band, draw_curves, draw_layers, draw_run, resolve_x, round_updates, thin, x_values
from hf_warmup.report.findings import group_findings
from hf_warmup.report.page import configuration_table, draw_page, sweep_grid, write_page
from hf_warmup.report.text import count_failures, headline, summarize_run, write_text

from .recorded import logged, recorded, write_run, write_state


# --- comparison ---


def seeds_of(runs):
    return {name: [run.seed for run in members] for name, members in by_configuration(runs).items()}


def test_runs_that_differ_in_the_seed_only_are_one_configuration(tmp_path):
    settings = {"optim": "adamw", "learning_rate": 1e-3}
    for where, rate in (("low", 1e-3), ("high", 2e-3)):
        for seed in (0, 1):
            run = settings | {"seed": seed, "learning_rate": rate, "output_dir": f"{where}{seed}"}
            write_run(tmp_path / where / str(seed), **run)
    for i, seed in enumerate((0, 1)):
        write_run(tmp_path / "flat" / f"anything-{i}", **settings | {"seed": seed, "optim": "radam"})
    assert seeds_of(find_runs([tmp_path])) == {"flat": ["0", "1"], "high": ["0", "1"], "low": ["0", "1"]}


def test_runs_of_one_folder_are_named_by_the_settings_that_differ(tmp_path):
    for i, (rate, seed) in enumerate([(1e-3, 0), (1e-3, 1), (2e-3, 0), (2e-3, 1)]):
        write_run(tmp_path / f"trial{i}", learning_rate=rate, seed=seed)
    assert seeds_of(find_runs(tmp_path)) == {"learning_rate=0.001": ["0", "1"], "learning_rate=0.002": ["0", "1"]}


def test_runs_without_a_recorded_seed_are_told_apart_by_their_folders(tmp_path):
    runs = [recorded(tmp_path / where / f"a-seed{seed}") for where in ("x", "y") for seed in (0, 1)]
    assert seeds_of(runs) == {"x": ["0", "1"], "y": ["0", "1"]}
    assert list(names_of(runs).values()) == ["x/a-seed0", "x/a-seed1", "y/a-seed0", "y/a-seed1"]
    twice = [recorded(tmp_path / "twice" / name, seed=0) for name in ("base", "more-data")]  # not in the settings
    assert seeds_of(twice) == {"base": ["0"], "more-data": ["0"]}


def test_configurations_in_folders_of_the_same_name_stay_apart(tmp_path):
    for name, rate in (("a", 1e-3), ("b", 2e-3)):
        for seed in (0, 1):
            write_run(tmp_path / name / "out" / f"trial{seed}", learning_rate=rate, seed=seed)
    assert seeds_of(find_runs(tmp_path)) == {"a": ["0", "1"], "b": ["0", "1"]}
    same = [recorded(tmp_path / "c" / f"x-seed{i}", learning_rate=i, seed=i) for i in (1, 2)]
    assert len(seeds_of(same)) == 2


def test_differing_settings_leaves_out_what_changes_nothing(tmp_path):
    shared = {"optim": "adamw", "output_dir": "somewhere", "seed": 0, "accelerator_config": {}, "save_steps": 5}
    runs = [
        recorded(tmp_path / "a", learning_rate=1e-3, zeta=1, **shared),
        recorded(
            tmp_path / "b", learning_rate=2e-3, zeta=2, **shared | {"seed": 1, "output_dir": "x", "save_steps": 6}
        ),
        recorded(tmp_path / "unknown"),
    ]
    assert differing_settings(runs) == ["learning_rate", "zeta"]


def test_mean_and_spread():
    assert mean_and_spread([1.0]) == "1.000"
    assert mean_and_spread([1, 2, 3], digits=0) == "2 ± 1"
    assert mean_and_spread([1.0, float("nan")]) == "nan"  # a seed that diverged


def test_common_name(tmp_path):
    assert common_name([tmp_path / "x" / "a"]) == "a"
    assert common_name([tmp_path / "x" / "a", tmp_path / "x" / "b"]) == "x"
    assert common_name(["/a", "/b"]) == "Runs"


# --- text ---

CURVE = {2: {"eval_accuracy": 0.7}, 4: {"eval_accuracy": 0.77}, 5: {"eval_accuracy": 0.76}}
BEST = {"best_metric": 0.77, "best_global_step": 4}


def test_text_of_one_run_begins_with_status_schedule_and_the_best_checkpoint(tmp_path):
    run = recorded(tmp_path / "a", evaluations=CURVE, state=BEST, planned=9, stopped=True)
    first, second, *_, last = summarize_run(run)
    assert first == "a: stopped early at update 5 of 9. No warmup: the rate is constant at 0.1."
    assert second == ("No problem found. Best eval_accuracy: 0.77 at update 4 (last: 0.76 at 5); use checkpoint-4.")
    assert last.startswith("Read 5 training losses, 3 evaluations and the norms of 4 layers at 5 updates: ")


def test_text_does_not_praise_a_log_that_holds_nothing(tmp_path):
    run = read_run(write_state(tmp_path / "a", [], 3, global_step=3))
    text = write_text([run])
    assert "No problem" not in text
    assert "No training loss was logged" in text


def test_text_of_many_runs_begins_with_the_best_configuration(tmp_path):
    for name, end in (("low", 0.9), ("high", 0.5)):
        for seed in (0, 1):
            evaluations = {5: {"eval_accuracy": end + 0.01 * seed}}
            write_run(
                tmp_path / f"{name}-seed{seed}",
                evaluations=evaluations,
                loss=(lambda t: 10.0**t) if name == "high" else (lambda t: 1 / t),
            )
    runs = find_runs(tmp_path)
    assert headline(runs, group_findings(runs)) == (
        "4 runs of 2 configurations. Best eval_accuracy: 0.905 ± 0.007 with low; next 0.505 ± 0.007 with high. "
        "Problems in 2 runs: high (2 of 2)."
    )
    lines = write_text(runs, width=1000).splitlines()
    assert "- low: 2 finished, 5 updates. No warmup: the rate is constant at 0.1." in lines
    assert any(line.startswith("- high (2 of 2 runs): PROBLEM (loss rises): The training loss rises") for line in lines)


def test_runs_of_different_tasks_are_not_ranked(tmp_path):
    runs = [recorded(tmp_path / "a", evaluations={5: {"eval_wer": 1.0}}), recorded(tmp_path / "b", evaluations=CURVE)]
    assert headline(runs, []) == "2 runs. No problem found."


# --- the table ---


def test_table_is_tidy(tmp_path):
    write_run(tmp_path / "a", steps=2, layers=1, learning_rate=1e-3, seed=3)
    write_run(tmp_path / "b", steps=2, layers=1, learning_rate=2e-3, seed=3)
    frame = to_dataframe(tmp_path)
    assert list(frame) == ["run", "configuration", "seed", "learning_rate", "update", "key", "value"]
    losses = frame[(frame.key == "loss") & (frame.run == "b")]
    assert losses[["learning_rate", "update", "value"]].to_numpy().tolist() == [["0.002", 1, 1.0], ["0.002", 2, 0.5]]
    main([str(tmp_path), "--text", "--csv", str(tmp_path / "out" / "all.csv")])
    with (tmp_path / "out" / "all.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(frame)


# --- figures ---

PNG = b"\x89PNG"


def test_figures_are_drawn_of_what_there_is(tmp_path):
    write_run(tmp_path / "a" / "run", evaluations=CURVE)
    everything = draw_comparison(tmp_path / "a", tmp_path / "out")
    assert [path.stem for path in everything] == [
        "learning_rate", "loss", "evaluation", "gradient_norm", "gradient_norm_ratio", "gradient_norms",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(PNG) for path in everything)
    write_state(tmp_path / "b", [{"step": t, "loss": 1.0, "epoch": t / 4, "odd key": t} for t in (1, 2)], 4)
    few = draw_comparison(tmp_path / "b", tmp_path / "out", x="epoch", keys=["odd key"])
    assert [path.stem for path in few] == ["loss", "odd_key"]
    with pytest.raises(ValueError, match=r"keys='od key' is unknown\. Did you mean 'odd key'"):
        draw_comparison(tmp_path / "b", tmp_path / "out", keys=["od key"])


def test_a_figure_is_a_picture_in_a_notebook(tmp_path):
    assert plot_loss(write_run(tmp_path / "a"))._repr_png_().startswith(PNG)


def test_x_values(tmp_path):
    log = [{"step": t, "loss": 1.0, "epoch": t / 4} for t in (2, 4)]
    run = read_run(write_state(tmp_path, log, 10))
    assert [x_values(run, [2, 4], x) for x in ("update", "epoch", "share")] == [[2, 4], [0.5, 1.0], [0.2, 0.4]]
    assert resolve_x([run]) == "update"
    assert resolve_x([run, recorded(tmp_path / "long", steps=100)]) == "share"
    with pytest.raises(ValueError, match="x='time' is unknown"):
        resolve_x([run], "time")


def test_a_loss_over_orders_of_magnitude_has_a_logarithmic_axis(tmp_path):
    assert plot_loss(recorded(tmp_path / "a", loss=lambda t: 10.0**-t)).axes[0].get_yscale() == "log"
    assert plot_loss(recorded(tmp_path / "b")).axes[0].get_yscale() == "linear"


def test_the_danger_zone_is_marked(tmp_path):
    (patch,) = plot_ratio(write_run(tmp_path / "a")).axes[0].patches
    assert patch.get_xy()[1] == 30
    assert len(set(patch.get_facecolor()[:3])) == 1  # grey, which is no configuration's colour


def test_configurations_look_the_same_in_figures_and_page(tmp_path):
    runs = [recorded(tmp_path / f"c{i}-seed{seed}") for i in range(20) for seed in (0, 1)]
    lines = plot_loss(runs).axes[0].get_legend_handles_labels()[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20
    means = [trace for trace in draw_curves(runs).data if trace.yaxis == "y2" and not trace.meta["single"]]
    assert [trace.line.color for trace in means] == [line.get_color() for line in lines]
    rows = configuration_table(runs, dict.fromkeys(by_configuration(runs), 0))
    assert [row["style"] for row in rows] == [(trace.line.color, trace.line.dash) for trace in means]


def test_heat_maps_of_runs_that_ended_at_different_updates_share_an_axis(tmp_path):
    runs = [recorded(tmp_path / "a", steps=5), recorded(tmp_path / "b", steps=9)]
    panels = plot_gradient_norms(runs).axes[:2]
    assert [axes.get_xlim() for axes in panels] == [(0.5, 9.5)] * 2
    assert [axes.images[0].get_extent()[:2] for axes in panels] == [[0.5, 5.5], [0.5, 9.5]]


def test_thin_keeps_the_ends_and_every_spike():
    steps = list(range(1, 5001))
    values = [100.0 if step in (777, 4242) else -100.0 if step == 2000 else step / 5000 for step in steps]
    kept, thinned = thin(steps, values, 200)
    assert len(kept) <= 210
    assert {1, 777, 2000, 4242, 5000} <= set(kept)
    assert all(thinned[i] == values[step - 1] for i, step in enumerate(kept))
    assert thin(steps[:100], values[:100], 200) == (steps[:100], values[:100])
    assert thin([1, 2, 3], [1.0, float("nan"), 3.0], 10) == ([1, 3], [1.0, 3.0])


def test_band_ends_where_fewer_than_half_of_the_runs_go_on():
    series = [([1, 2, 3], [1.0, 2.0, 9.0]), ([1, 2], [3.0, 4.0]), ([1], [5.0])]
    assert band(series) == ([1, 2], [1.0, 2.0], [3.0, 3.0], [5.0, 4.0])


def test_a_short_warmup_is_drawn_among_many_long_runs(tmp_path):
    rates = [0.5, 1.0, *(1 - i / 400 for i in range(400))]
    runs = [logged(tmp_path / f"c{i}-seed{seed}", rates) for i in range(40) for seed in (0, 1)]
    lines = [trace for trace in draw_curves(runs).data if trace.yaxis == "y"]
    assert all((line.x[0], line.x[-1], line.y[line.x.index(2)]) == (1, 402, 1.0) for line in lines)
    assert sum(len(line.x) for line in lines) < 10_000


def test_round_updates_are_dense_at_the_beginning():
    assert round_updates(1, 5000, 100)[:9] == [1, 2, 3, 4, 5, 6, 8, 10, 15]
    assert round_updates(10, 5000, 6) == [10, 50, 200, 800, 4000, 5000]
    assert round_updates(1, 1, 6) == [1]


def test_heat_map_of_all_runs_at_an_update(tmp_path):
    runs = [recorded(tmp_path / "a", growth=10.0), recorded(tmp_path / "short", steps=2, planned=5, layers=2)]
    figure, slider = draw_layers(runs)
    assert list(figure.data[0].y) == ["embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2"]
    assert (slider["updates"], slider["shown"]) == ([1, 2, 3, 4, 5], 4)
    assert slider["tables"][0] == [[0, 0], [0, 0], [1, 0], [2, None]]  # powers of ten
    assert [row[1] for row in slider["tables"][4]] == [None] * 4  # the second run had ended
    assert draw_layers(runs[:1]) is None


def test_heat_map_names_each_configuration_once(tmp_path):
    names = ["a-seed0", "a-seed1", "b-seed0", "c-seed0", "c-seed1", "c-seed2"]
    runs = [recorded(tmp_path / name) for name in names]
    figure, _ = draw_layers(runs)
    axis = figure.layout.xaxis
    assert list(figure.data[0].x) == names
    assert dict(zip(axis.ticktext, axis.tickvals, strict=True)) == {"a": 0.5, "b": 2, "c": 4}
    assert [line.x0 for line in figure.layout.shapes] == [1.5, 2.5]
    assert [trace.name for trace in draw_run(runs).data] == names


def test_effective_and_scheduled_learning_rate_are_both_drawn(tmp_path):
    figure = draw_curves([recorded(tmp_path / "radam", log={"scheduled_lr": 0.05})])
    lines = {line.meta["name"]: list(line.y) for line in figure.data if line.yaxis == "y"}
    assert lines == {"radam": [0.05] * 5, "radam, schedule": [0.1] * 5}


# --- the page ---


class Links(HTMLParser):
    """Everything that a browser would fetch, and every tag."""

    def __init__(self, page: str):
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.fetched += [value for key, value in attributes if key in ("src", "href") and value]


@pytest.mark.parametrize(("runs", "layers"), [(1, 12), (60, 48), (2, 0)])
def test_the_page_stands_alone(tmp_path, runs, layers):
    folders = [recorded(tmp_path / f"c{i // 3}-seed{i % 3}", layers=layers, steps=40) for i in range(runs)]
    page = draw_page(folders, "a <b> title")
    assert Links(page).fetched == ["data:,"]
    assert "a &lt;b&gt; title" in page
    assert len(page) < 5e6


def test_the_page_holds_valid_json_where_values_are_not_finite(tmp_path):
    nan = float("nan")
    runs = [recorded(tmp_path / name, loss=lambda t: nan, evaluations={5: {"eval_loss": nan}}) for name in ("a", "b")]
    data = re.search(r'id="data">(.*?)</script>', draw_page(runs))[1]
    json.loads(data, parse_constant=pytest.fail)


def test_names_are_text_in_the_page(tmp_path):
    hostile = "<img src=x onerror=alert(1)><a href='http:x'>"
    write_run(tmp_path / "runs" / hostile, learning_rate=f"</script>{hostile}")
    write_run(tmp_path / "runs" / "b", learning_rate="b")
    norms = tmp_path / "runs" / hostile / "gradient_norms.jsonl"
    norms.write_text(norms.read_text().replace("embeddings", f"{hostile}</script>"))
    page = draw_page(tmp_path / "runs", f"</title>{hostile}")
    assert Links(page).fetched == ["data:,"]
    assert not {"img", "a"} & Links(page).tags
    for raw in ("<img", "\\u003cimg", "<a href", "\\u003ca href", "</script>\\"):
        assert raw not in page
    assert "default-src 'none'; script-src 'nonce-" in page


def test_names_that_cannot_be_printed_or_look_like_formulas_are_text(tmp_path):
    name, metric = os.fsdecode(b"a\n\x1b[31m\xff$b"), r"eval_$\frac{a$"
    runs = [recorded(tmp_path / name, evaluations={5: {metric: 0.5}})]
    assert runs[0].name == "a\ufffd\ufffd[31m\ufffd$b"
    write_page(runs, tmp_path / "report.html")
    assert len(draw_comparison(runs, tmp_path)) > 3


def test_the_page_has_the_results_of_each_configuration(tmp_path):
    loss = {"a-seed0": 0.8, "a-seed1": 0.82, "b-seed0": 0.5}
    runs = [recorded(tmp_path / name, loss=lambda t, last=last: last) for name, last in loss.items()]
    rows = configuration_table(runs, {"a": 0, "b": 0})
    assert {row["name"]: row["results"] for row in rows} == {
        "a": {"eval_loss": "1.000 ± 0.000", "loss": "0.810 ± 0.014"},
        "b": {"eval_loss": "1.000", "loss": "0.500"},
    }


def test_sweep_grid_has_a_cell_for_each_pair_of_settings(tmp_path):
    for rate in (1e-3, 2e-3):
        for warmup in (0, 100):
            failed = rate == 2e-3 and warmup == 0
            evaluations = {5: {"eval_accuracy": 0.5 if failed else 0.8 + rate + warmup / 1e4}}
            settings = {"learning_rate": rate, "num_warmup_steps": warmup, "seed": 0, "evaluations": evaluations}
            settings["warmup_type"] = "linear" if warmup else "none"  # follows from the length: no third setting
            write_run(
                tmp_path / f"{rate}-{warmup}", loss=(lambda t: 10.0**t) if failed else (lambda t: 1 / t), **settings
            )
    runs = find_runs(tmp_path)
    failed = count_failures(runs, group_findings(runs))
    grid = sweep_grid(runs, failed)
    assert (grid["row"], grid["column"], grid["metric"]) == ("learning_rate", "num_warmup_steps", "eval_accuracy")
    cells = {
        (row, column): cell for row, cells in grid["rows"] for column, cell in zip(grid["columns"], cells, strict=True)
    }
    assert {place: cell["text"] for place, cell in cells.items()} == {
        ("0.001", "0"): "0.801", ("0.001", "100"): "0.811", ("0.002", "0"): "0.500", ("0.002", "100"): "0.812",
    }  # fmt: skip
    assert [place for place, cell in cells.items() if cell["failed"]] == [("0.002", "0")]
    assert [place for place, cell in cells.items() if cell["best"]] == [("0.002", "100")]
    assert sweep_grid(runs[:3], failed) is None


# --- the command ---


def test_the_command_writes_text_page_and_figures(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"rising-seed{seed}", loss=lambda t: 10.0**t)
    write_run(tmp_path / "fine", steps=30)
    runs = [tmp_path / "runs", tmp_path / "fine", tmp_path / "runs" / "rising-seed0"]  # one of them twice
    main([*map(str, runs), "--output_dir", str(tmp_path / "out"), "--json", str(tmp_path / "out" / "findings.json")])
    out = capsys.readouterr().out
    assert out.startswith("3 runs of 2 configurations.")
    assert f"<title>{tmp_path.name}</title>" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "loss.png").exists()
    findings = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert {"rising-seed0", "rising-seed1"} <= {finding["run"] for finding in findings if finding["is_problem"]}


@pytest.mark.parametrize(
    ("level", "run", "code"), [("problem", "rising", 1), ("problem", "fine", 0), ("any", "few", 1)]
)
def test_fail_on_sets_the_exit_code(tmp_path, level, run, code):
    write_run(tmp_path / "rising", loss=lambda t: 10.0**t)
    write_run(tmp_path / "fine", steps=30)
    write_state(tmp_path / "few", [{"step": 1, "loss": 1.0}], 1)
    try:
        main([str(tmp_path / run), "--text", "--fail-on", level])
        ended = 0
    except SystemExit as stop:
        ended = stop.code
    assert ended == code


@pytest.mark.parametrize(("folder", "sentence"), [("nothing", "no such file or folder"), (".", "json is missing")])
def test_what_is_no_run_is_one_line_and_exit_code_2(tmp_path, capsys, folder, sentence):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / folder), "--output_dir", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert sentence in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["plotly", "matplotlib", "jinja2"])
def test_findings_are_printed_without_the_libraries_that_draw(tmp_path, capsys, monkeypatch, module):
    real = importlib.util.find_spec
    monkeypatch.setattr("hf_warmup.report.figures.find_spec", lambda name: None if name == module else real(name))
    main([str(write_run(tmp_path / "a")), "--output_dir", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "a: finished, 5 updates." in out
    assert re.search(rf"No .*: {module} is missing. Install it: pip install 'hf-warmup\[plot\]'", out)
