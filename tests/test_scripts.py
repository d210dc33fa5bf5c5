"""The scripts as a user runs them: short real runs, and one sentence for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, BertTokenizerFast

from hf_warmup.norms import read_gradient_norms

from .testing_utils import FROM_SCRATCH, tiny_bert, write_task


ROOT = Path(__file__).parent.parent


@pytest.fixture
def finetune(script, files):
    """`finetune_bert.py` on the small files, 12 updates unless told otherwise."""

    def call(output_dir: Path, *flags: object, rc: int = 0) -> tuple[str, str]:
        data = ("--train_file", files / "train.tsv", "--validation_file", files / "dev.tsv", "--task_name", "sst2")
        quiet = ("--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--dataloader_pin_memory", "false")
        size = ("--max_seq_length", 8, "--per_device_train_batch_size", 16, "--learning_rate", 1e-2, "--max_steps", 12)
        what = ("--do_train", "--do_eval", "--save_strategy", "no", "--output_dir", output_dir)
        return script("finetune_bert.py", *data, *quiet, *size, *what, *flags, rc=rc)

    return call


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A vocabulary, SST-2-like files, and a pretrained checkpoint, made here."""
    folder = tmp_path_factory.mktemp("files")
    write_task(folder)
    tiny_bert(vocab_size=15).save_pretrained(folder / "checkpoint")
    BertTokenizerFast.from_pretrained(folder / "vocabulary").save_pretrained(folder / "checkpoint")
    return folder


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_finetune_from_scratch(finetune, files, tmp_path, placement):
    flags = ("--optim", "radam", "--lr_scheduler_type", "noam", "--warmup_type", "cosine", "--warmup_steps", 0.25)
    vocabulary = ("--tokenizer_name", files / "vocabulary")
    finetune(tmp_path, *FROM_SCRATCH, *vocabulary, "--norm_placement", placement, "--max_steps", 120, *flags)
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    assert {"eval_accuracy", "eval_f1", "eval_matthews_correlation", "eval_roc_auc"} <= metrics.keys()
    assert metrics["eval_accuracy"] == 1.0  # six words decide
    assert len(read_gradient_norms(tmp_path)) == 120
    assert json.loads((tmp_path / "config.json").read_text())["norm_placement"] == placement
    assert (tmp_path / "gradient_norms.png").stat().st_size > 10_000


@pytest.mark.parametrize("placement", [None, "pre"])
def test_finetune_from_a_checkpoint(finetune, files, tmp_path, placement):
    chosen = ("--norm_placement", placement) if placement else ()
    predict = ("--do_predict", "--test_file", files / "dev.tsv")
    finetune(tmp_path, "--model_name_or_path", files / "checkpoint", *chosen, *predict, "--learning_rate", 0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == ("bert-pre-ln" if placement else "bert")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).bert.embeddings.word_embeddings.weight
    start = BertForSequenceClassification.from_pretrained(files / "checkpoint").bert.embeddings.word_embeddings.weight
    assert torch.equal(loaded, start)  # at learning rate 0 the pretrained weights come out as they went in
    rows = (tmp_path / "predict_results.txt").read_text().splitlines()
    assert rows[0] == "index\tprediction"
    assert [row.split("\t")[0] for row in rows[1:]] == [str(i) for i in range(12)]
    assert {row.split("\t")[1] for row in rows[1:]} <= {"0", "1"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--optim", "radamm"), "optim='radamm' is unknown. Did you mean 'radam'?"),
        (("--lr_scheduler_kwargs", "{nope"), "lr_scheduler_kwargs='{nope': expected a JSON object"),
        (("--warmup_steps", 13), "warmup_steps=13: expected at most max_steps=12"),
        (("--learning_rate", "nan"), "learning_rate=nan: expected a finite number"),
        (("--train_file", "missing.tsv"), "train_file='missing.tsv': there is no such file"),
        (("--task_name", "rte"), "expected sentence1, sentence2 and label"),
        (("--task_name", "sst3"), "task_name='sst3' is unknown. Did you mean 'sst2'?"),
        (("--resume_from_checkpoint", "gone"), "resume_from_checkpoint='gone': there is no such folder"),
        (("--max_train_samples", 0), "max_train_samples=0: expected an integer in [1, inf)"),
        (("--report_to", "tensorbord"), "tensorbord"),
        (("--warmup_stepps", 3), "--warmup_stepps is no argument. Did you mean --warmup_steps?"),
        (("--gradient_accumulation_steps", 0), "gradient_accumulation_steps=0: expected an integer in [1, inf)"),
        (("--norm_placement", "per"), "norm_placement='per' is unknown. Did you mean"),
    ],
    ids=lambda value: "",
)
def test_finetune_says_what_is_wrong_in_one_sentence(finetune, files, tmp_path, flags, sentence):
    _, err = finetune(tmp_path / "out", *FROM_SCRATCH, "--tokenizer_name", files / "vocabulary", *flags, rc=2)
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert sentence in error[0]
    assert not (tmp_path / "out" / "trainer_state.json").exists()


@pytest.mark.parametrize("placement", [(), ("--norm_placement", "pre")])
def test_sequences_beyond_a_checkpoints_positions_are_refused(finetune, files, tmp_path, placement):
    flags = ("--model_name_or_path", files / "checkpoint", "--max_seq_length", 17, *placement)
    _, err = finetune(tmp_path / "out", *flags, rc=2)
    assert "error: max_seq_length=17: expected at most the 16 positions of " in err
    assert not (tmp_path / "out" / "trainer_state.json").exists()


def test_compare_layer_norm_runs_resumes_and_reports(script, tmp_path):
    short = ("--max_steps", 4, "--warmup_steps", 2, "--num_hidden_layers", 2, "--num_workers", 1)
    flags = ("--arms", "post:adamw:linear", "pre:adam_warmup:none", "--seeds", 0, 1, *short, "--output_dir", tmp_path)
    out, _ = script("compare_layer_norm.py", *flags)
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 4
    for result in results:
        assert result.keys() >= {
            "norm_placement", "optim", "warmup_type", "warmup_steps", "seed", "final_loss", "accuracy",
            "steps_to_loss_0.5",
        }  # fmt: skip
        assert result["warmup_steps"] == 2
        assert result["steps_to_loss_0.5"] is None  # four updates are not enough
    assert "post:adamw:linear, pre:adam_warmup:none failed on every seed" in out
    run = tmp_path / "pre-adam_warmup-none-seed1"
    assert [record["step"] for record in read_gradient_norms(run)] == [1, 2, 3, 4]
    for figure in ("learning_rate.png", "loss.png", "gradient_norms.png", "gradient_norm_ratio.png", "report.html"):
        assert (tmp_path / figure).stat().st_size > 10_000

    (run / "result.json").unlink()  # as if stopped before its end: this one is run again, the others are not
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    script("compare_layer_norm.py", *flags)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--arms", "post:adamw"), "arms='post:adamw': expected post or pre:optim:warmup_type"),
        (("--arms", "post:adamx:none"), "optim='adamx' is unknown. Did you mean"),
        (("--arms", "post:adam_warmup:linear"), "the optimizer warms up already"),
        (("--max_steps", "0"), "max_steps=0: expected an integer in [1, inf)"),
        (("--seeds", "-1"), "seeds=-1: expected an integer"),
        (("--warmup_steps", "500"), "warmup_steps=500: expected at most max_steps=300"),
    ],
    ids=lambda value: "",
)
def test_compare_says_what_is_wrong_in_one_sentence(script, tmp_path, flags, sentence):
    _, err = script("compare_layer_norm.py", "--output_dir", tmp_path / "out", *flags, rc=2)
    assert err.count("error: ") == 1
    assert sentence in err
    assert not (tmp_path / "out").exists()


def test_scripts_start_as_programs():
    for name in ("compare_layer_norm.py", "finetune_bert.py"):
        command = [sys.executable, str(ROOT / "scripts" / name), "--help"]
        assert "--output_dir" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
