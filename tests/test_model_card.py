"""Cards from runs: the Hub's metadata, the spread over seeds, and the words."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from transformers import trainer as host

from hf_warmup import WarmupTrainer
from hf_warmup.model_card import Experiment, experiment_card, main, results_of
from hf_warmup.report import read_run

from .recorded import recorded, write_run
from .testing_utils import arguments, examples, tiny_bert, train


@pytest.fixture
def card(tmp_path):
    runs = [recorded(tmp_path / f"a-seed{seed}", steps=2) for seed in (0, 7)]
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


def check_metadata(card):
    """What the Hub asks of it, by its own library's reading and writing; the Hub itself is not asked."""
    again = ModelCard(str(card), ignore_metadata_errors=False).data
    assert again.to_dict() == card.data.to_dict()
    index = yaml.safe_load(card.data.to_yaml()).get("model-index", [])
    if index:
        name, results = model_index_to_eval_results(index)
        assert eval_results_to_model_index(name, results) == index
    for entry in index:
        for result in entry["results"]:
            assert {"task", "dataset", "metrics"} <= result.keys()
            assert {"type", "name"} <= result["dataset"].keys()
            assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
    return card


def test_run_folders_become_a_card(tmp_path, capsys):
    for arm, rate in (("low", 1e-3), ("high", 2e-3)):
        for seed in (0, 1):
            settings = {"learning_rate": rate, "optim": "adamw", "seed": seed}
            growth = 10.0 if arm == "high" else 1.0
            folder = tmp_path / "runs" / f"{arm}-seed{seed}"
            write_run(folder, growth=growth, onset=2, loss=lambda t: 1.0, **settings)
    main([str(tmp_path / "runs"), "--output_dir", str(tmp_path / "card"), "--dataset", "toy", "--license", "mit"])
    assert "README.md" in capsys.readouterr().out
    card = check_metadata(ModelCard.load(tmp_path / "card" / "README.md"))
    assert card.data.license == "mit"
    assert {result.metric_type for result in card.data.eval_results} == {"loss"}
    for part in (
        "# runs", "4 runs of 2 arms, which differ in learning_rate.", "All have optim = adamw.",
        "- `high`: The gradient of encoder.layer.0 is 100 times smaller",
        "over the seeds 0, 1; 5 updates a run",
        "| `high` | 1.000 ± 0.000 | `learning_rate=0.002` |", "- machine: ", "At least 2 seeds an arm",
    ):  # fmt: skip
        assert part in card.text, part
    for picture in card.text.split("](images/")[1:]:
        assert (tmp_path / "card" / "images" / picture.split(")")[0]).exists()


def test_results_are_the_training_loss_where_nothing_was_evaluated(tmp_path):
    run = recorded(tmp_path / "a-seed0")
    assert results_of([run]) == {"loss": {"a": [1.0]}}  # eval_loss
    run = replace(run, log_history=run.log_history[:-2])
    assert results_of([run]) == {"loss": {"a": [0.2]}}


def test_results_are_those_of_the_model_that_was_kept(tmp_path):
    run = recorded(tmp_path / "a", steps=7)
    assert results_of([run]) == {"loss": {"a": [1.0]}}  # the log's evaluation
    # Evaluated again behind the training, with the best checkpoint loaded.
    (tmp_path / "a" / "all_results.json").write_text('{"eval_loss": 0.5, "eval_accuracy": 0.75, "train_loss": 2.0}')
    assert results_of([read_run(tmp_path / "a")]) == {"loss": {"a": [0.5]}, "accuracy": {"a": [0.75]}}


def test_results_are_the_updates_where_nothing_was_logged(tmp_path):
    run = replace(recorded(tmp_path / "a", steps=7), log_history=[])
    assert results_of([run]) == {"updates": {"a": [7]}}


def test_an_arm_without_results_keeps_its_row():
    experiment = Experiment("T", "Q", "c", ("other", "toy"), "L", settings={"a": "--optim radam", "b": "--optim adamw"})
    text = experiment_card(experiment, {"accuracy": {"a": [0.8]}}).text
    assert "| `a` | 0.800 | `--optim radam` |\n| `b` |  | `--optim adamw` |" in text
    assert "One value each." in text


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([0.8033, 0.8], "0.802 ± 0.002"), ([999.5], "999.5"), ([55.4, 55.2], "55.30 ± 0.14"), ([3.296], "3.296"),
        ([0.000118], "0.000118"), ([0.0], "0.000"), ([float("nan")], "nan"),
    ],
)  # fmt: skip
def test_cells_have_the_digits_of_their_size(values, cell):
    text = experiment_card(Experiment("T", "Q", "c", ("other", "toy"), "L"), {"x": {"a": values}}).text
    assert f"| `a` | {cell} |" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "--output_dir", str(tmp_path / "card")])
    assert stop.value.code == 2
    assert "trainer_state.json is missing" in capsys.readouterr().err


@pytest.fixture
def trained(tmp_path):
    """A trainer that stalls by construction: clipping throughout, and evaluated."""
    args = arguments(tmp_path, optim="adamw", warmup_type="linear", warmup_steps=4, max_grad_norm=1e-3)
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8))
    train(trainer)
    trainer.evaluate()
    return trainer


def check_trainers_card(folder):
    card = check_metadata(ModelCard.load(folder / "README.md"))
    assert {"generated_from_trainer", "hf-warmup"} <= set(card.data.tags)
    for part in (
        "## Warmup and gradient norms", "Finished, 8 updates.", "Clipping was active in 100 % of the recorded updates",
        "A warmup of 4 updates is 0.2 % of the usual 2 / (1 - beta2) = 2000 at beta2 = 0.999", "| optim | adamw |",
        "| num_warmup_steps |", "| machine | ", "![Gradient norm of each layer over updates](gradient_norms.png)",
    ):  # fmt: skip
        assert part in card.text, part
    assert card.text.count("## Warmup and gradient norms") == 1
    assert (folder / "gradient_norms.png").read_bytes().startswith(b"\x89PNG")


def test_the_trainers_card_has_what_was_recorded(trained, tmp_path):
    trained.create_model_card(model_name="tiny", tags="mine")
    trained.create_model_card(model_name="tiny", tags="mine")  # again, as each push does
    check_trainers_card(tmp_path)
    assert "mine" in ModelCard.load(tmp_path / "README.md").data.tags


def test_a_push_takes_the_card_along(trained, tmp_path, monkeypatch):
    uploaded = {}

    def upload_folder(folder_path, **kwargs):
        uploaded.update(kwargs, card=ModelCard.load(f"{folder_path}/README.md").text)

    fake = SimpleNamespace(upload_folder=upload_folder)
    monkeypatch.setattr(host, "hf_api", lambda: fake, raising=False)
    monkeypatch.setattr(host, "upload_folder", upload_folder, raising=False)  # transformers before 5
    monkeypatch.setattr(trained, "init_hf_repo", lambda **kwargs: setattr(trained, "hub_model_id", "me/tiny"))
    trained.hub_model_id = None
    trained.push_to_hub()
    assert uploaded["repo_id"] == "me/tiny"
    assert "## Warmup and gradient norms" in uploaded["card"]
    check_trainers_card(tmp_path)


def test_a_card_without_a_recording(tmp_path):
    trainer = WarmupTrainer(model=tiny_bert(), args=arguments(tmp_path, grad_norm_steps=0), train_dataset=examples())
    trainer.create_model_card()  # before any update
    train(trainer)
    trainer.create_model_card()
    text = ModelCard.load(tmp_path / "README.md").text
    assert "Finished, 8 updates." in text
    assert "gradient_norms.png" not in text
