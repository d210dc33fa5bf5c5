"""`hf_warmup.show`: runs in a notebook."""

from __future__ import annotations

import importlib.util

import pytest

import hf_warmup
from hf_warmup.report import read_run

from .recorded import write_run, write_state


@pytest.fixture
def report(tmp_path):
    write_run(tmp_path / "<b>", loss=lambda t: 10.0**t, log={"odd/key": 1.0})
    return hf_warmup.show(tmp_path / "<b>")


def test_show_takes_folders_runs_and_lists(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    for given in (tmp_path / "a", str(tmp_path / "a"), run, [run], [tmp_path / "a"]):
        assert hf_warmup.show(given).runs[0].losses == run.losses
    with pytest.raises(ValueError, match="no such file or folder"):
        hf_warmup.show(tmp_path / "nothing")


def test_show_is_text_and_one_picture(report):
    html = report._repr_html_()
    assert html.count("<img") == 1
    assert "<p><b>&lt;b&gt;: finished, 5 updates. No warmup: the rate is constant at 0.1.</b></p>" in html
    assert "PROBLEM (loss rises)" in html
    assert repr(report).startswith("<b>: finished, 5 updates.")


def test_show_without_matplotlib_is_text(report, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("hf_warmup.report.figures.find_spec", lambda name: None if name == "matplotlib" else real(name))
    assert "pip install 'hf-warmup[plot]'" in report._repr_html_()


def test_text_fits_on_a_screen(tmp_path):
    for i in range(60):
        write_state(tmp_path / f"run{i}", [{"step": t, "loss": 10.0**t} for t in range(1, 9)], 8)
    report = hf_warmup.show(tmp_path)
    for shown in (report, report.findings):
        assert len(repr(shown).splitlines()) <= 41
    assert len(repr(report.runs[0])) < 200


def test_findings_name_the_rule_and_what_to_do(report):
    finding = report.findings[0]
    assert (finding.rule, finding.is_problem) == ("loss rises", True)
    assert repr(report.findings).startswith("PROBLEM loss rises: The training loss rises")


def test_figure_takes_a_name_or_a_logged_key(report):
    assert report.figure_names == [
        "learning_rate",
        "loss",
        "evaluation",
        "gradient_norm",
        "gradient_norm_ratio",
        "gradient_norms",
    ]
    for name in ("evaluation", "odd/key"):
        assert report.figure(name)._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        report.figure("los")


def test_iframe_keeps_the_page_apart_from_the_notebook(report):
    frame = report.iframe(height=300)
    html = frame._repr_html_()
    assert html.startswith('<iframe sandbox="allow-scripts" style="width: 100%; height: 300px')
    assert html.count("<") == 2  # the page is an attribute's value
    assert len(repr(frame)) < 100


def test_to_dataframe_has_every_logged_value(report):
    frame = report.to_dataframe()
    assert frame[frame.key == "odd/key"].value.tolist() == [1.0] * 5
