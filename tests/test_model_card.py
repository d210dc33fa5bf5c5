"""Cards from runs: the Hub's metadata, the spread over seeds, and the words."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_warmup.model_card import Experiment, experiment_card
from hf_warmup.report import read_run


def write_run(folder):
    folder.mkdir()
    log = [{"loss": 1.0, "step": step} for step in (1, 2)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return read_run(folder)


@pytest.fixture
def card(tmp_path):
    runs = [write_run(tmp_path / f"a-seed{seed}") for seed in (0, 7)]
    experiment = Experiment(
        "Title", "Question.", "make demo", ("fill-mask", "toy"), "Limits.", {"loss.png": "Loss"}, {"a": "--optim radam"}
    )
    experiment_card(experiment, {"accuracy": {"a": [0.8, 0.82]}}, runs).save(tmp_path / "card.md")
    return ModelCard.load(tmp_path / "card.md")


def test_metadata_is_the_hubs(card):
    assert card.data.license == "apache-2.0"
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_type) == (pytest.approx(0.81), "toy")
    assert yaml.safe_load(card.data.to_yaml())["library_name"] == "transformers"


def test_the_table_has_mean_spread_seeds_and_settings(card):
    assert "| `a` | 0.810 ± 0.014 | `--optim radam` |" in card.text
    assert "seeds 0, 7; 2 updates a run" in card.text
    for part in ("# Title", "Question.", "![Loss](loss.png)", "make demo", "Limits.", "- torch: "):
        assert part in card.text


def test_the_cards_in_the_repository_load():
    from pathlib import Path

    cards = sorted((Path(__file__).parent.parent / "model_cards").glob("*.md"))
    assert len(cards) >= 2
    for path in cards:
        card = ModelCard.load(path)
        assert card.data.eval_results
        for picture in card.text.split("](images/")[1:]:
            assert (path.parent / "images" / picture.split(")")[0]).exists()
