"""`hf_warmup.show`: runs in a notebook."""

from __future__ import annotations

import importlib.util

import pytest

import hf_warmup
from hf_warmup import report
from hf_warmup.report import read_run

from .recorded import write_run, write_state


@pytest.fixture
def shown(tmp_path):
    evaluations = {1: {"eval_loss": 2.0}, 5: {"eval_loss": 1.0}}
    write_run(tmp_path / "<b>", loss=lambda t: 10.0**t, log={"odd/key": 1.0}, evaluations=evaluations)
    return hf_warmup.show(tmp_path / "<b>")


def test_show_takes_folders_runs_and_lists(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    for given in (tmp_path / "a", str(tmp_path / "a"), run, [run], [tmp_path / "a"]):
        assert hf_warmup.show(given).runs[0].losses == run.losses
    with pytest.raises(ValueError, match="no such file or folder"):
        hf_warmup.show(tmp_path / "nothing")


def test_functions_of_report_take_a_folder_a_run_or_a_list(tmp_path):
    run = read_run(write_run(tmp_path / "a", loss=lambda t: 10.0**t))
    takers = (report.find, report.by_configuration, report.differing_settings, report.shared_settings,
              report.plot_loss, report.to_dataframe)  # fmt: skip
    for function in (*takers, report.find_runs):
        for given in (
            tmp_path / "a",
            str(tmp_path / "a"),
            [tmp_path / "a"],
            *([run, [run]] if function in takers else []),
        ):
            assert function(given) is not None
    assert report.find(run) == report.find(tmp_path / "a")


def test_show_is_text_and_one_picture(shown):
    html = shown._repr_html_()
    assert html.count("<img") == 1
    assert "<p><b>&lt;b&gt;: finished, 5 updates. No warmup: the rate is constant at 0.1.</b></p>" in html
    assert "PROBLEM (loss rises)" in html
    assert repr(shown).startswith("<b>: finished, 5 updates.")


def test_show_without_matplotlib_is_text(shown, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("hf_warmup.report.figures.find_spec", lambda name: None if name == "matplotlib" else real(name))
    assert "pip install 'hf-warmup[plot]'" in shown._repr_html_()


def test_text_fits_on_a_screen(tmp_path):
    for i in range(60):
        write_state(tmp_path / f"run{i}", [{"step": t, "loss": 10.0**t} for t in range(1, 9)], 8)
    report = hf_warmup.show(tmp_path)
    for shown in (report, report.findings):
        assert len(repr(shown).splitlines()) <= 41
    assert len(repr(report.runs[0])) < 200


def test_findings_name_the_rule_and_what_to_do(shown):
    finding = shown.findings[0]
    assert (finding.rule, finding.is_problem) == ("loss rises", True)
    assert repr(shown.findings).startswith("PROBLEM loss rises: The training loss rises")


def test_figure_takes_a_name_or_a_logged_key(shown):
    assert shown.figure_names == [
        "learning_rate",
        "loss",
        "evaluation",
        "gradient_norm",
        "gradient_norm_ratio",
        "gradient_norms",
    ]
    for name in ("evaluation", "odd/key"):
        assert shown.figure(name)._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        shown.figure("los")


def test_iframe_keeps_the_page_apart_from_the_notebook(shown):
    frame = shown.iframe(height=300)
    html = frame._repr_html_()
    assert html.startswith('<iframe sandbox="allow-scripts" style="width: 100%; height: 300px')
    assert html.count("<") == 2  # the page is an attribute's value
    assert len(repr(frame)) < 100


def test_to_dataframe_has_every_logged_value(shown):
    frame = shown.to_dataframe()
    assert frame[frame.key == "odd/key"].value.tolist() == [1.0] * 5
