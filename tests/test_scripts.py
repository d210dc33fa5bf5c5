"""The scripts as a user runs them: short runs, the errors for wrong input, and what they may import."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, BertTokenizerFast

from compare_layer_norm import split_arm, summarize
from hf_warmup.gradient_norms import read_gradient_norms
from scripts.text_classification.arguments import (
    DataArguments,
    ModelArguments,
    build_model,
    describe_data,
    load_data,
    load_tokenizer,
    tokenize,
)
from scripts.text_classification.polarity import write_polarity

from .testing_utils import FROM_SCRATCH, tiny_bert, write_task


SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A vocabulary, files like those of SST-2, and a pretrained checkpoint."""
    folder = tmp_path_factory.mktemp("files")
    write_task(folder)
    tiny_bert(vocab_size=15).save_pretrained(folder / "checkpoint")
    BertTokenizerFast.from_pretrained(folder / "vocabulary").save_pretrained(folder / "checkpoint")
    return folder


@pytest.fixture
def finetune(script, files):
    """Run `finetune_bert.py` on the small files for 12 updates, unless `flags` say otherwise."""

    def call(output_dir: Path, *flags: object, rc: int = 0) -> tuple[str, str]:
        data = ("--train_file", files / "train.tsv", "--validation_file", files / "dev.tsv")
        quiet = ("--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--dataloader_pin_memory", "false")
        size = ("--max_seq_length", 8, "--per_device_train_batch_size", 16, "--learning_rate", 1e-2, "--max_steps", 12)
        what = ("--do_train", "--do_eval", "--save_strategy", "no", "--output_dir", output_dir)
        return script("finetune_bert.py", *data, *quiet, *size, *what, *flags, rc=rc)

    return call


def test_finetune_bert_from_scratch_learns_and_reports(finetune, files, tmp_path):
    schedule = ("--optim", "radam", "--lr_scheduler_type", "noam", "--warmup_type", "cosine", "--warmup_steps", 0.25)
    model = (*FROM_SCRATCH, "--tokenizer_name", files / "vocabulary", "--norm_placement", "pre")
    out, _ = finetune(tmp_path, *model, *schedule, "--max_steps", 60)
    assert "Data: text from sentence, classes 0, 1; examples: 96 in train, 12 in validation." in out
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    assert {"eval_accuracy", "eval_f1", "eval_matthews_correlation", "eval_roc_auc"} <= metrics.keys()
    assert metrics["eval_accuracy"] == 1.0  # six words decide
    assert len(read_gradient_norms(tmp_path)) == 60
    assert json.loads((tmp_path / "config.json").read_text())["norm_placement"] == "pre"
    assert (tmp_path / "gradient_norms.png").stat().st_size > 10_000


def test_finetune_bert_from_a_checkpoint_with_files_only(finetune, files, tmp_path):
    predict = ("--do_predict", "--test_file", files / "dev.tsv", "--learning_rate", 0, "--max_steps", 2)
    finetune(tmp_path, "--model_name_or_path", files / "checkpoint", *predict)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).bert.embeddings.word_embeddings.weight
    start = BertForSequenceClassification.from_pretrained(files / "checkpoint").bert.embeddings.word_embeddings.weight
    assert torch.equal(loaded, start)  # learning rate 0 keeps the pretrained weights
    rows = (tmp_path / "predict_results.txt").read_text().splitlines()
    assert rows[0] == "index\tprediction"
    assert [row.split("\t")[0] for row in rows[1:]] == [str(i) for i in range(12)]
    assert {row.split("\t")[1] for row in rows[1:]} <= {"0", "1"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--optim", "radamm"), "optim='radamm' is unknown. Did you mean 'radam'?"),
        (("--learning_rate", "nan"), "learning_rate=nan"),
        (("--train_file", "missing.tsv"), "train_file='missing.tsv': there is no such file"),
        (("--task_name", "rte"), "expected 'sentence1', 'sentence2', 'label'"),
        (("--task_name", "sst3"), "invalid choice: 'sst3' (choose from"),
        (("--max_train_samples", 0), "max_train_samples=0: expected an integer in [1, inf)"),
        (("--norm_placement", "per"), "invalid choice: 'per' (choose from 'pre', 'post')"),
        (("--model_name_or_path", "./nowhere"), "model_name_or_path='./nowhere': there is no such folder."),
        (("--tokenizer_name", "runs/a/b"), "tokenizer_name='runs/a/b': there is no such folder."),
    ],
    ids=lambda value: "",
)
def test_finetune_bert_exits_with_one_error_before_training(finetune, files, tmp_path, flags, message):
    _, err = finetune(tmp_path / "out", *FROM_SCRATCH, "--tokenizer_name", files / "vocabulary", *flags, rc=2)
    errors = [line for line in err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out" / "trainer_state.json").exists()


@pytest.fixture
def task(files):
    """The small files as `load_data` reads them, and their tokenizer."""
    args = DataArguments(train_file=str(files / "train.tsv"), max_seq_length=8)
    return load_data(args, ["train"]), load_tokenizer(ModelArguments(tokenizer_name=str(files / "vocabulary"))), args


@pytest.mark.parametrize("placement", [None, "pre"])
def test_build_model_checks_the_positions_and_the_head_of_a_checkpoint(files, task, placement):
    (data, _), tokenizer, _ = task
    args = ModelArguments(model_name_or_path=str(files / "checkpoint"), norm_placement=placement)
    assert build_model(args, tokenizer, data, 8).config.model_type == ("bert-pre-ln" if placement else "bert")
    with pytest.raises(ValueError, match=r"max_seq_length=17: expected at most the 16 positions of "):
        build_model(args, tokenizer, data, 17)
    data["train"] = data["train"].add_column("other", [i % 3 for i in range(len(data["train"]))])
    data = data.remove_columns("label").rename_column("other", "label").class_encode_column("label")
    with pytest.raises(ValueError, match=r"than the 3 of the data. Pass `--ignore_mismatched_sizes`"):
        build_model(args, tokenizer, data, 8)


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bert-vocab.txt", "\n".join(SPECIAL), "has no vocabulary that .* can read"),
        ("vocab.json", '{"good": 1}', "has no vocabulary that .* can read"),
        ("vocab.txt", "<pad>\n<s>\n</s>\n<unk>\ngood", r"has no \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        ("vocab.txt", "", r"has no \[PAD\]"),
        ("vocab.txt", "\n".join([*SPECIAL, "déjà"]).encode("latin-1"), "is not a vocabulary in UTF-8"),
    ],
)
def test_load_tokenizer_raises_for_an_unusable_vocabulary(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_tokenizer(ModelArguments(tokenizer_name=str(tmp_path)))


def test_build_model_has_an_embedding_for_every_id(tmp_path, task):
    """A token that occurs twice has the larger id, so that ids reach beyond the number of tokens."""
    (tmp_path / "vocab.txt").write_text("\ufeff" + "\r\n".join([*SPECIAL, "good", "bad", "good", "bad"]))
    args = ModelArguments(tokenizer_name=str(tmp_path), num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
    tokenizer = load_tokenizer(args)
    assert max(tokenizer("good bad")["input_ids"]) == 8
    assert build_model(args, tokenizer, task[0][0], 8).config.vocab_size == 9


def test_tokenize_warns_if_most_tokens_are_unknown(tmp_path, task, monkeypatch):
    (data, columns), tokenizer, args = task
    warnings = []
    monkeypatch.setattr("scripts.text_classification.arguments.logger.warning", warnings.append)
    tokenize(data, columns, tokenizer, args)
    assert warnings == []
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "nonsense"]))
    tokenize(data, columns, load_tokenizer(ModelArguments(tokenizer_name=str(tmp_path))), args)
    assert "100% of the tokens in the training data are unknown to the tokenizer ([UNK])" in warnings[0]


def test_describe_data_names_columns_classes_and_sizes(task):
    assert describe_data(*task[0]) == "Data: text from sentence, classes 0, 1; examples: 96 in train."


def test_write_polarity_splits_all_sentences(tmp_path):
    (tmp_path / "rt-polarity.pos").write_bytes("\n".join(f"déjà vu, {i} . " for i in range(30)).encode("latin-1"))
    with pytest.raises(ValueError, match=r"has no file rt-polarity.neg. Download https://"):
        write_polarity(tmp_path, tmp_path / "out")
    (tmp_path / "rt-polarity.neg").write_bytes("\n".join(f"bad, {i} ." for i in range(30)).encode())
    train, validation = write_polarity(tmp_path, tmp_path / "out")
    args = DataArguments(train_file=str(train), validation_file=str(validation))
    data, _ = load_data(args, ["train", "validation"])
    assert {split: len(rows) for split, rows in data.items()} == {"train": 54, "validation": 6}
    rows = {(row["sentence"], row["label"]) for split in data.values() for row in split}
    assert rows == {(f"{words}, {i} .", label) for label, words in ((1, "déjà vu"), (0, "bad")) for i in range(30)}


@pytest.mark.parametrize(
    ("arm", "parts"),
    [
        ("post:adamw:none", ("post", "adamw", "none")),
        ("pre:my_optim:MyAdam:linear", ("pre", "my_optim:MyAdam", "linear")),
        ("post:adamw_torch:my_curves:linear", ("post", "adamw_torch", "my_curves:linear")),
        ("post:my_optim:MyAdam:my_curves:quadratic", ("post", "my_optim:MyAdam", "my_curves:quadratic")),
    ],
)
def test_split_arm_accepts_import_paths(arm, parts):
    assert split_arm(arm) == parts


def test_summarize_sorts_configurations_by_success():
    def result(optim, updates):
        same = {"norm_placement": "post", "warmup_type": "none", "final_loss": 1.0, "accuracy": 0.5}
        return {**same, "optim": optim, "steps_to_loss_0.5": updates}

    results = [result("sgd", None), result("adamw", 100), result("adamw", 120), result("radam", None)]
    table, words = summarize([*results, result("radam", 90)])
    assert words == (
        "post:sgd:none failed on every seed. post:adamw:none solved the task on every seed. "
        "post:radam:none solved the task on some seeds. Chance level: loss 3.296, accuracy 0.037."  # ln 27, 1 / 27
    )
    assert "2/2" in table
    assert "110 ± 14" in table  # sample standard deviation of 100 and 120
    assert "never" in table


def test_compare_layer_norm_runs_resumes_and_reports(script, tmp_path):
    short = ("--max_steps", 2, "--warmup_steps", 1, "--num_hidden_layers", 2, "--num_workers", 1, "--seeds", 1)
    flags = ("--arms", "post:adamw:linear", "pre:adam_warmup:none", *short, "--output_dir", tmp_path)
    out, _ = script("compare_layer_norm.py", *flags)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [result["optim"] for result in results] == ["adamw", "adam_warmup"]
    for result in results:
        assert result.keys() >= {"norm_placement", "optim", "warmup_type", "seed", "final_loss", "accuracy"}
        assert (result["warmup_steps"], result["steps_to_loss_0.5"]) == (1, None)
    assert "post:adamw:linear, pre:adam_warmup:none failed on every seed" in out
    run = tmp_path / "pre-adam_warmup-none-seed1"
    assert [record["step"] for record in read_gradient_norms(run)] == [1, 2]
    for figure in ("learning_rate.png", "loss.png", "gradient_norms.png", "gradient_norm_ratio.png", "report.html"):
        assert (tmp_path / figure).stat().st_size > 10_000
    assert "post:adamw:linear" in (tmp_path / "README.md").read_text()

    (run / "result.json").unlink()  # as if interrupted: only this run is executed again
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    script("compare_layer_norm.py", *flags)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arms", "post:adamw"), "arms='post:adamw': expected post or pre:optim:warmup_type"),
        (("--arms", "post:adamx:none"), "optim='adamx' is unknown. Did you mean"),
        (("--max_steps", "0"), "max_steps=0: expected an integer in [1, inf)"),
        (("--seeds", "0", "-1"), "seeds=-1: expected an integer in [0, inf)"),
        (("--warmup_steps", "500"), "warmup_steps=500: expected at most max_steps=300"),
    ],
    ids=lambda value: "",
)
def test_compare_layer_norm_exits_with_one_error(script, tmp_path, flags, message):
    _, err = script("compare_layer_norm.py", "--output_dir", tmp_path / "out", *flags, rc=2)
    assert err.count("error: ") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_scripts_import_public_names_of_the_library_only():
    for path in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in getattr(node, "names", ())] if isinstance(node, ast.ImportFrom) else []
            imported = [node.module or "", *names] if isinstance(node, ast.ImportFrom) else []
            if imported and imported[0].startswith("hf_warmup"):
                assert not any(re.search(r"(^|\.)_(?!_)", name) for name in imported), f"{path}: {imported}"
