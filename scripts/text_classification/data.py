"""Sentence-classification data: GLUE tasks from the Hub, or csv, tsv and json files.

`datasets` parses the files. This module chooses the columns, turns labels into class ids, and raises an error for files
that would train a model on something else than their author meant.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd


# The text columns of each GLUE task, as in transformers' `run_glue.py`.
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
# Text columns that need no `task_name` and no `text_column_names`; pairs come first.
KNOWN_COLUMNS = (*sorted(dict.fromkeys(TASK_COLUMNS.values()), key=len, reverse=True), ("text",))
_INVISIBLE = ("Cc", "Cf")  # categories of Unicode: control and format characters
FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}

Data = tuple[datasets.DatasetDict, list[str]]


def load_task(task_name: str) -> Data:
    """Load a GLUE task from the Hub.

    Args:
        task_name (`str`): A key of `TASK_COLUMNS`.

    Returns:
        `tuple[DatasetDict, list[str]]`: The splits, and the text columns in the tokenizer's order.
    """
    columns = list(TASK_COLUMNS[task_name])
    data = datasets.load_dataset("nyu-mll/glue", task_name)
    if task_name == "mnli":
        data["validation"], data["test"] = data.pop("validation_matched"), data.pop("test_matched")
    return data.select_columns([*columns, "label"]), columns


def load_files(files: dict[str, str], task_name: str | None = None, text_columns: Sequence[str] | None = None) -> Data:
    """Load splits from csv, tsv (without quoting, as in GLUE) or json files.

    Args:
        files (`dict[str, str]`): Split to path; the split `train` is required.
        task_name (`str`, *optional*): A GLUE task whose text columns the files have.
        text_columns (`Sequence[str]`, *optional*): One or two text columns. By default these are known names
            (`sentence`, `text`, `sentence1` with `sentence2`, ...), or the only column of text besides the label.

    Returns:
        `tuple[DatasetDict, list[str]]`: The splits, with the text columns and `label`, a `ClassLabel` of the labels in
            the training file; and the text columns in the tokenizer's order.

    Raises:
        `ValueError`: If a file is missing, empty or malformed, if it is unclear which columns are text, if a row has no
            text or no label, or if the labels are not classes that the training file has.
    """
    described = {split: f"{split}_file={path!r}" for split, path in files.items()}
    data = {split: _read(described[split], Path(path)) for split, path in files.items()}
    known = TASK_COLUMNS[task_name] if task_name else text_columns
    columns = list(known or _find_text(described["train"], data["train"]))
    labels = {split: _check(described[split], rows, columns, split) for split, rows in data.items()}
    names = sorted(set(labels["train"]), key=lambda name: (0, int(name), "") if _is_int(name) else (1, 0, name))
    if len(names) < 2:
        raise ValueError(f"{described['train']} has only the label {names[0]!r}: expected at least two classes.")
    if len({name.casefold() for name in names}) < len(names):
        raise ValueError(f"{described['train']} has labels that differ only in case: {', '.join(names)}.")
    ids = {name: i for i, name in enumerate(names)}
    loaded = {}
    for split, rows in data.items():
        if unknown := sorted(set(labels[split]) - set(names)):
            raise ValueError(f"{described[split]} has the label {unknown[0]!r}: the training file has {names}.")
        content = {column: [str(text) for text in rows[column]] for column in columns}
        content["label"] = [ids[label] for label in labels[split]] or [0] * len(rows)
        features = datasets.Features(
            {column: datasets.Value("string") for column in columns} | {"label": datasets.ClassLabel(names=names)}
        )
        loaded[split] = datasets.Dataset.from_dict(content, features)
    return datasets.DatasetDict(loaded), columns


def _read(described: str, path: Path) -> datasets.Dataset:
    """Parse a file; cells of csv and tsv files stay text, and rows that are longer than the header are an error."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{described}: expected a file name that ends with {', '.join(FORMATS)}.")
    if not path.is_file():
        raise ValueError(f"{described}: there is no such file.")
    if FORMATS[path.suffix] == "json":
        return _load(described, path)
    options: dict[str, Any] = {"keep_default_na": False}  # "null" and "NA" are words
    if path.suffix == ".tsv":
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}  # in GLUE a quotation mark is part of the sentence
    try:
        head = pd.read_csv(path, nrows=1000, dtype=str, **options)
    except ValueError as error:  # of the parser or of the encoding
        raise ValueError(f"{described} cannot be read as csv in UTF-8: {str(error).strip()}.") from None
    # pandas takes surplus fields as an index, which shifts the columns. Only row numbers are such an index.
    names, surplus = list(head.columns), head.index.nlevels
    if not isinstance(head.index, pd.RangeIndex) and [*map(str, head.index)] != [*map(str, range(len(head)))]:
        raise ValueError(
            f"{described} has rows of {len(names) + surplus} fields, but its header has {len(names)} "
            f"({', '.join(map(repr, names))}). Quote fields that contain a separator, or name every column."
        )
    return _load(described, path, features=datasets.Features(dict.fromkeys(names, datasets.Value("string"))), **options)


def _load(described: str, path: Path, **options: Any) -> datasets.Dataset:
    try:
        rows = datasets.load_dataset(FORMATS[path.suffix], data_files=str(path), split="train", **options)
    except datasets.exceptions.DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{described} cannot be read as {FORMATS[path.suffix]} in UTF-8: {reason}.") from None
    except ValueError:  # the error of `datasets` for a file without rows
        rows = []
    if len(rows) == 0:
        raise ValueError(f"{described} is empty: expected at least one example.")
    return rows


def _find_text(described: str, rows: datasets.Dataset) -> Sequence[str]:
    """Return the text columns of a file for which the user named none."""
    known = next((names for names in KNOWN_COLUMNS if set(names) <= set(rows.column_names)), None)
    # A column such as `label_text` gives the answer away.
    kinds = {name: kind for name, kind in rows.features.items() if not name.lower().startswith("label")}
    text = [name for name, kind in kinds.items() if getattr(kind, "dtype", "").endswith("string")]
    text = known or [name for name in text if not all(map(_is_number, rows[name]))]
    if "label" not in rows.column_names or (not known and len(text) != 1):
        raise ValueError(
            f"{described} has the columns {', '.join(map(repr, rows.column_names))} in its first line: expected "
            "'label' and 'sentence', 'text', or 'sentence1' and 'sentence2', separated by commas (tabs in a tsv file). "
            "Pass other text columns as `text_column_names`."
        )
    return text


def _check(described: str, rows: datasets.Dataset, columns: Sequence[str], split: str) -> list[str]:
    """Check that every row has text and a class, and return the names of the classes (none for unlabeled test data)."""
    unlabeled = split == "test" and "label" not in rows.column_names
    missing = [name for name in (*columns, *([] if unlabeled else ["label"])) if name not in rows.column_names]
    if missing:
        found, expected = (", ".join(map(repr, names)) for names in (rows.column_names, [*columns, "label"]))
        raise ValueError(f"{described} has the columns {found}: expected {expected}.")
    for column in columns:
        for i, text in enumerate(rows[column], 1):
            if isinstance(text, (list, dict)) or text is None or not visible(str(text)):
                raise ValueError(f"{described}: example {i} has no text in column {column!r}.")
    labels = [] if unlabeled else rows["label"][:]
    for i, label in enumerate(labels, 1):
        if isinstance(label, (list, dict)) or label is None or not visible(str(label)):
            raise ValueError(f"{described}: example {i} has the label {label!r}: expected a class.")
        number = str(label).strip().rstrip("%").replace(",", ".")
        if _is_number(number) and (float(number) % 1 or "e" in number.lower()):  # 21 digits in JSON are a float
            raise ValueError(f"{described}: example {i} has the label {label}: expected classes, not a scale.")
    names = [class_name(label) for label in labels]
    classes = len(set(names))
    for column in columns:
        pairs = set(zip(rows[column], names, strict=False))
        if len(set(rows[column])) == len(pairs) == classes < len(names):
            raise ValueError(f"{described}: column {column!r} has one value for each label: expected text.")
    return names


def visible(text: str) -> str:
    """Return `text` without invisible characters and repeated spaces."""
    seen = (c for c in unicodedata.normalize("NFKC", text) if c.isspace() or unicodedata.category(c) not in _INVISIBLE)
    return " ".join("".join(seen).split())


def class_name(label: Any) -> str:
    """Return the name of a class, without invisible characters, repeated spaces, and the fraction of a whole number.

    Example:

    ```python
    >>> class_name("pos\\u200b "), class_name("very  good"), class_name("2.0")
    ('pos', 'very good', '2')

    ```
    """
    return re.sub(r"^([+-]?\d+)\.0*$", r"\1", visible(str(label)))


def _is_number(value: Any) -> bool:
    return bool(re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", str(value), re.IGNORECASE))


def _is_int(name: str) -> bool:
    return bool(re.fullmatch(r"-?\d{1,18}", name))
