"""On the complete GLUE files, where the environment variable HF_WARMUP_DATA says they are."""

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


def test_sst2_is_read_whole():
    folder = DATA / "glue" / "SST-2"
    data, columns = load_files({"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv")}, "sst2")
    assert columns == ["sentence"]
    assert (len(data["train"]), len(data["validation"])) == (67_349, 872)
    assert data["validation"][0] == {"sentence": "it 's a charming and often affecting journey . ", "label": 1}
    # The majority class of the development set: 444 of 872.
    assert sum(data["validation"]["label"]) == 444


def test_rte_pairs_and_its_labels_are_read():
    folder = DATA / "glue" / "RTE"
    data, columns = load_files({"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv")}, "rte")
    assert columns == ["sentence1", "sentence2"]
    assert (len(data["train"]), len(data["validation"])) == (2_490, 277)
    assert data["validation"].features["label"].names == ["entailment", "not_entailment"]


def test_the_vocabulary_tokenizes_a_sentence():
    tokenizer = BertTokenizerFast.from_pretrained(DATA / "bert-base-uncased")
    assert tokenizer("A charming journey.")["input_ids"] == [101, 1037, 11951, 4990, 1012, 102]
