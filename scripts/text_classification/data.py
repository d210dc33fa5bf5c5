"""Sentence-classification data: GLUE tasks of the hub, or csv, tsv and json files with the same columns."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets

from hf_warmup._validation import check_name


# The columns of each GLUE task, as transformers' `run_glue.py` names them.
TASK_COLUMNS: dict[str, tuple[str, ...]] = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "wnli": ("sentence1", "sentence2"),
}


Data = tuple[datasets.DatasetDict, list[str]]


def load_task(task_name: str) -> Data:
    """GLUE's `task_name` from the hub: its splits, and its columns of text in the tokenizer's order."""
    check_name("task_name", task_name, TASK_COLUMNS)
    data = datasets.load_dataset("nyu-mll/glue", task_name)
    if task_name == "mnli":
        data["validation"], data["test"] = data.pop("validation_matched"), data.pop("test_matched")
    columns = list(TASK_COLUMNS[task_name])
    return data.select_columns([*columns, "label"]), columns


def load_files(files: dict[str, str], task_name: str | None = None) -> Data:
    """Splits from csv, tsv (GLUE's, nothing quoted) or json files.

    Args:
        files (`dict[str, str]`): Split, `train` among them, to path; all of one kind.
        task_name (`str`, *optional*): Takes this GLUE task's columns; otherwise every column of text but `label`
            counts, two at most.

    Returns:
        `tuple[DatasetDict, list[str]]`: The splits, with columns of text and `label`, a `ClassLabel` of the training
            file's labels in order; and the columns of text in the tokenizer's order.

    Raises:
        `ValueError`: For a file that is missing, empty, of another kind, or without the expected columns, for a label
            that is a fraction, and for one that the training file does not have.
    """
    if task_name is not None:
        check_name("task_name", task_name, TASK_COLUMNS)
    data = datasets.DatasetDict({split: _load_file(split, Path(file)) for split, file in files.items()})
    train = data["train"]
    if task_name is not None:
        columns = list(TASK_COLUMNS[task_name])
    else:
        columns = [name for name, kind in train.features.items() if name != "label" and kind.dtype.endswith("string")]
        columns = columns[:2]
    for split, dataset in data.items():
        missing = [name for name in [*columns, "label"] if name not in dataset.column_names]
        if (missing and not (missing == ["label"] and split == "test")) or not columns:
            raise ValueError(
                f"{split}_file={files[split]!r} has the columns {', '.join(dataset.column_names)}: expected "
                f"{', '.join(columns) or 'one or two of text'} and label."
            )
    for split, dataset in data.items():
        if "label" not in dataset.column_names:
            continue
        if any(label in (None, "") for label in dataset["label"]):
            raise ValueError(f"{split}_file={files[split]!r} has a row without a label: expected one in each.")
        label = next((label for label in dataset["label"] if isinstance(label, float) and label % 1), None)
        if label is not None:
            raise ValueError(f"{split}_file={files[split]!r} has the label {label}: expected classes, not a scale.")
    labels = [str(label) for label in sorted(set(train["label"]))]  # numbers by size, words by letter
    for split, dataset in data.items():
        if "label" not in dataset.column_names:
            data[split] = dataset.add_column("label", [labels[0]] * len(dataset))
        unknown = {str(label) for label in data[split]["label"]} - set(labels)
        if unknown:
            raise ValueError(f"{split}_file={files[split]!r} has the label {min(unknown)!r}: expected {labels}.")
    feature = datasets.ClassLabel(names=labels)
    data = data.map(
        lambda examples: {"label": [feature.str2int(str(label)) for label in examples["label"]]},
        batched=True,
        desc="labels",
    ).cast_column("label", feature)
    return data.select_columns([*columns, "label"]), columns


def _load_file(split: str, path: Path) -> datasets.Dataset:
    kinds = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
    check_name(f"{split}_file's ending", path.suffix, kinds)
    if not path.is_file():
        raise ValueError(f"{split}_file={str(path)!r}: there is no such file.")
    if not path.read_text(encoding="utf-8", errors="replace").strip():
        raise ValueError(f"{split}_file={str(path)!r} is empty: expected a header and at least one example.")
    # GLUE's tab-separated files quote nothing: a quotation mark is a part of the sentence.
    options: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    if kinds[path.suffix] == "csv":
        options["keep_default_na"] = False  # "null" and "NA" are words
    try:
        dataset = datasets.load_dataset(kinds[path.suffix], data_files=str(path), split="train", **options)
    except datasets.exceptions.DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{split}_file={str(path)!r} cannot be read: {reason}.") from None
    except ValueError:  # what datasets says when a file holds no rows
        dataset = []
    if len(dataset) == 0:
        raise ValueError(f"{split}_file={str(path)!r} has no examples: expected at least one.")
    return dataset
