"""Three users' own runs, from training to the numbers of the report and the first screen of the page."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import EarlyStoppingCallback

from hf_warmup import WarmupTrainer
from hf_warmup.report import find_runs
from hf_warmup.report.findings import group_findings
from hf_warmup.report.page import configuration_table, write_page
from hf_warmup.report.text import count_failures, headline

from .processes import run, torchrun
from .recorded import write_run
from .test_page_in_browser import driver, in_page, opened, page, pytestmark  # noqa: F401
from .testing_utils import arguments, examples, tiny_bert


def trained_with_early_stopping(folder):
    """A Trainer script with early stopping and the best model: the metric falls from the second evaluation on."""
    scores = iter([0.7, 0.7731, 0.76, 0.7599, 0.7, 0.7])
    args = arguments(
        folder, max_steps=12, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="accuracy", greater_is_better=True, warmup_steps=2,
        warmup_type="linear", optim="adamw",
    )  # fmt: skip
    trainer = WarmupTrainer(
        model=tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8),
        compute_metrics=lambda _: {"accuracy": np.float64(next(scores))}, callbacks=[EarlyStoppingCallback(2)],
    )  # fmt: skip
    trainer.train()


def nested_seeds(folder):
    """Three configurations of five seeds in nested folders with arbitrary names."""
    for name, rate, accuracy in (("low", 1e-4, 0.7), ("middle", 1e-3, 0.9), ("high", 1e-2, 0.5)):
        for seed in range(5):
            loss = (lambda t: 10.0**t) if name == "high" else (lambda t: 1 / t)
            evaluations = {2: {"eval_accuracy": 0.1}, 5: {"eval_accuracy": accuracy + 0.01 * seed}}
            write_run(
                folder / name / "2026-11" / f"trial_{seed}", loss=loss, evaluations=evaluations, learning_rate=rate,
                seed=seed,
            )  # fmt: skip


def loop_on_two_processes(folder):
    done = run(*torchrun(2), "tests/workers/loop.py", folder, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr


PATHS = {
    trained_with_early_stopping: (
        "Stopped early at update 8 of 12. Best eval_accuracy: 0.7731 at update 4 (last: 0.7599 at 8); use "
        "checkpoint-4. No problem found."
    ),
    nested_seeds: (
        "15 runs of 3 configurations. Best eval_accuracy: 0.920 ± 0.016 with middle; next 0.720 ± 0.016 with low. "
        "Problems in 5 runs: high (5 of 5)."
    ),
    loop_on_two_processes: "8 updates. No problem found.",
}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_the_report_of_a_newcomers_runs_is_right_in_numbers_and_on_the_first_screen(path, tmp_path, opened):  # noqa: F811
    path(tmp_path / "runs")
    runs = find_runs([tmp_path / "runs"])
    groups = group_findings(runs)
    assert headline(runs, groups) == PATHS[path]
    if path is trained_with_early_stopping:
        assert runs[0].results()["eval_accuracy"] == 0.7731
        assert list(runs[0].learning_rates.values[:3]) == pytest.approx([0.005, 0.01, 0.01])
    elif path is nested_seeds:
        rows = configuration_table(runs, count_failures(runs, groups))
        assert [(row["name"], row["ends"]) for row in rows] == [
            (name, "5 finished, 5 updates") for name in ("middle", "low", "high")
        ]
    else:
        assert (len(runs[0].losses.steps), list(runs[0].steps)) == (8, list(range(1, 9)))  # 64 / (4 x 2 processes)
        assert list(runs[0].learning_rates.values[:4]) == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    browser = opened(page=write_page(runs, tmp_path / "report.html"))
    assert in_page(browser, "document.getElementById('answer').textContent") == PATHS[path]
    for what in ("answer", "findings"):
        assert in_page(browser, f"document.getElementById('{what}').getBoundingClientRect().top") < 900
    drawn = in_page(browser, "document.getElementById('curves').layout.annotations.map(a => a.text)")
    assert {"Effective learning rate", "Training loss"} <= set(drawn)
    if path is not loop_on_two_processes:
        assert "Evaluation: eval_accuracy" in drawn
        stars = in_page(
            browser, "document.getElementById('curves').data.filter(d => d.marker?.symbol == 'star').length"
        )
        assert stars == (3 if path is nested_seeds else 1)
