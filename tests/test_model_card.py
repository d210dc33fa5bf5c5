"""`hf_warmup.model_card`: cards from runs, with the Hub's metadata, the spread over runs, and the findings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from transformers import TrainerState
from transformers import trainer as host

from hf_warmup import WarmupTrainer
from hf_warmup.model_card import Experiment, experiment_card, main, results_of
from hf_warmup.report import read_run
from hf_warmup.report.model_card import add_recording

from .recorded import recorded, write_run, write_state
from .testing_utils import arguments, examples, tiny_bert, train


def check_metadata(card):
    """Check what the Hub asks of a card by its own library's reading and writing; the Hub itself is not asked."""
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


def experiment(**kwargs):
    defaults = {"title": "T", "question": "Q.", "command": "c", "task": ("other", "toy"), "limits": "L."}
    return Experiment(**defaults | kwargs)


def test_experiment_card_has_metadata_table_and_machine(tmp_path):
    runs = [recorded(tmp_path / f"a-seed{seed}", steps=2, optim="radam") for seed in (0, 7)]
    card = experiment_card(
        experiment(
            title="Title", command="make demo", figures={"loss.png": "Loss"}, settings={"a": "--optim radam", "b": ""}
        ),
        {"accuracy": {"a": [0.8, 0.82]}},
        runs,
    )
    (result,) = check_metadata(card).data.eval_results
    assert (result.metric_value, result.dataset_type) == (pytest.approx(0.81), "toy")
    for part in (
        "# Title", "Q.", "![Loss](loss.png)", "```bash\nmake demo\n```", "L.", "- torch: 2",
        "| `a` | 0.810 ± 0.014 | `--optim radam` |\n| `b` |  |  |", "seeds 0, 7; 2 updates per run",
    ):  # fmt: skip
        assert part in card.text, part


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([0.8033, 0.8], "0.802 ± 0.002"), ([999.5], "999.5"), ([55.4, 55.2], "55.30 ± 0.14"), ([3.296], "3.296"),
        ([0.000118], "0.000118"), ([0.0], "0.000"), ([float("nan")], "nan"),
    ],
)  # fmt: skip
def test_cells_have_the_digits_of_their_size(values, cell):
    assert f"| `a` | {cell} |" in experiment_card(experiment(), {"x": {"a": values}}).text


def test_the_cards_in_the_repository_load():
    cards = sorted((Path(__file__).parent.parent / "model_cards").glob("*.md"))
    assert len(cards) >= 2
    for path in cards:
        card = ModelCard.load(path)
        assert card.data.eval_results
        for picture in card.text.split("](images/")[1:]:
            assert (path.parent / "images" / picture.split(")")[0]).exists()


def test_run_folders_become_a_card(tmp_path, capsys):
    for name, rate in (("low", 1e-3), ("high", 2e-3)):
        for seed in (0, 1):
            settings = {"learning_rate": rate, "optim": "adamw", "seed": seed}
            loss = (lambda t: 10.0**t) if name == "high" else (lambda t: 1 / t)
            write_run(tmp_path / "runs" / f"{name}-seed{seed}", loss=loss, **settings)
    main([str(tmp_path / "runs"), "--output_dir", str(tmp_path / "card"), "--dataset", "toy", "--license", "mit"])
    assert "README.md" in capsys.readouterr().out
    card = check_metadata(ModelCard.load(tmp_path / "card" / "README.md"))
    assert card.data.license == "mit"
    assert {result.metric_type for result in card.data.eval_results} == {"loss"}
    for part in (
        "# runs", "4 runs of 2 configurations. Best eval", "All have optim = adamw.",
        "- `high (2 of 2 runs)`: The training loss rises", "over the seeds 0, 1; 5 updates per run",
        "| `high` | 1.000 ± 0.000 | `learning_rate=0.002` |", "At least 2 runs per configuration",
    ):  # fmt: skip
        assert part in card.text, part
    for picture in card.text.split("](images/")[1:]:
        assert (tmp_path / "card" / "images" / picture.split(")")[0]).exists()


def test_a_card_of_a_run_made_elsewhere_claims_nothing_it_lacks(tmp_path):
    write_state(tmp_path / "a", [{"step": 1, "epoch": 0.1}], 3, global_step=3)
    main([str(tmp_path / "a"), "--output_dir", str(tmp_path / "card")])
    card = check_metadata(ModelCard.load(tmp_path / "card" / "README.md"))
    assert "- versions and machine: not recorded" in card.text
    assert card.data.tags == ["learning-rate"]
    assert not card.data.eval_results
    assert "## Results" not in card.text
    assert "](images/" not in card.text


def test_names_are_text_in_a_card(tmp_path):
    name = "<img src=x> ~~[x](y) | `z`"
    write_run(tmp_path / "runs" / name, learning_rate=name, optim="a")
    write_run(tmp_path / "runs" / "b", learning_rate="b```", optim="a")
    main([str(tmp_path / "runs"), "--output_dir", str(tmp_path / "card"), "--title", name])
    text = ModelCard.load(tmp_path / "card" / "README.md").text
    assert "# &lt;img src=x&gt; \\~\\~\\[x\\](y) \\| \\`z\\`" in text
    assert f"`` {name} ``".replace("|", "\\|") in text
    assert "```` learning_rate=b``` ````" in text


def test_results_are_those_of_the_model_that_was_kept(tmp_path):
    evaluations = {2: {"eval_accuracy": 0.77}, 5: {"eval_accuracy": 0.76}}
    best = {"best_metric": 0.77, "best_global_step": 2}
    run = recorded(tmp_path / "a", evaluations=evaluations, state=best, load_best_model_at_end=True)
    assert results_of([run]) == {"accuracy": {"a": [0.77]}}
    assert results_of([recorded(tmp_path / "b", evaluations={5: {"other": 1.0}})]) == {"loss": {"b": [0.2]}}


# --- the Trainer's card ---


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "--output_dir", str(tmp_path / "card")])
    assert stop.value.code == 2
    assert "trainer_state.json is missing" in capsys.readouterr().err


@pytest.fixture
def trained(tmp_path):
    """A trainer whose gradients are clipped throughout, and that evaluated."""
    args = arguments(tmp_path, optim="adamw", warmup_type="linear", warmup_steps=4, max_grad_norm=1e-3)
    trainer = WarmupTrainer(model=tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8))
    train(trainer)
    trainer.evaluate()
    return trainer


def check_trainers_card(folder):
    card = check_metadata(ModelCard.load(folder / "README.md"))
    assert {"generated_from_trainer", "hf-warmup"} <= set(card.data.tags)
    for part in (
        "## Warmup and gradient norms", "Finished, 8 updates. Warmup: 4 of 8 updates (50 %), linear to 0.01",
        "Clipping was active in 100 % of the recorded updates", "| optim | adamw |", "| machine | ",
        "![Gradient norm of each layer over updates](gradient_norms.png)",
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


def test_the_trainers_card_has_the_results_of_the_best_model(tmp_path):
    evaluations = {2: {"eval_loss": 0.5, "eval_accuracy": 0.7731}, 5: {"eval_loss": 0.6, "eval_accuracy": 0.7599}}
    best = {"best_metric": 0.7731, "best_global_step": 2, "best_model_checkpoint": "checkpoint-2"}
    run = recorded(tmp_path / "a", evaluations=evaluations, state=best, load_best_model_at_end=True)
    (tmp_path / "a" / "README.md").write_text("---\nlicense: mit\n---\n\n# a\n\n- Loss: 0.6000\n- Accuracy: 0.7599\n")
    state = TrainerState(log_history=run.log_history, global_step=5, max_steps=5, **best)
    add_recording(tmp_path / "a", state)
    text = ModelCard.load(tmp_path / "a" / "README.md").text
    assert "- Loss: 0.5000\n- Accuracy: 0.7731\n" in text
    assert read_run(tmp_path / "a").results()["eval_accuracy"] == 0.7731


def test_a_card_without_a_recording(tmp_path):
    trainer = WarmupTrainer(model=tiny_bert(), args=arguments(tmp_path, grad_norm_steps=0), train_dataset=examples())
    trainer.create_model_card()  # before any update
    train(trainer)
    trainer.create_model_card()
    text = ModelCard.load(tmp_path / "README.md").text
    assert "Finished, 8 updates." in text
    assert "gradient_norms.png" not in text
