"""Reading the complete GLUE files in the folder that the environment variable HF_WARMUP_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

from scripts.text_classification.data import load_files


pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("HF_WARMUP_DATA" not in os.environ, reason="HF_WARMUP_DATA names no folder with the data"),
]
DATA = Path(os.environ.get("HF_WARMUP_DATA", "."))


def test_load_files_reads_all_of_sst2():
    folder = DATA / "glue" / "SST-2"
    data, columns = load_files({"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv")}, "sst2")
    assert columns == ["sentence"]
    assert (len(data["train"]), len(data["validation"])) == (67_349, 872)
    assert data["validation"][0] == {"sentence": "it 's a charming and often affecting journey . ", "label": 1}
    # 444 of 872 examples are of the majority class.
    assert sum(data["validation"]["label"]) == 444


def test_load_files_reads_pairs_and_labels_of_rte():
    folder = DATA / "glue" / "RTE"
    data, columns = load_files({"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv")}, "rte")
    assert columns == ["sentence1", "sentence2"]
    assert (len(data["train"]), len(data["validation"])) == (2_490, 277)
    assert data["validation"].features["label"].names == ["entailment", "not_entailment"]


def test_vocabulary_tokenizes_a_sentence():
    tokenizer = BertTokenizerFast.from_pretrained(DATA / "bert-base-uncased")
    assert tokenizer("A charming journey.")["input_ids"] == [101, 1037, 11951, 4990, 1012, 102]
