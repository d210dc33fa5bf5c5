"""Arguments, model and tokenizer of the fine-tuning scripts."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast
from transformers.utils import logging

from hf_warmup import BertPreLNConfig, BertPreLNForSequenceClassification
from hf_warmup.cli import check_minimums

from .data import TASK_COLUMNS, Data, load_files, load_task


logger = logging.get_logger(__name__)

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")  # of a BERT from scratch


def flag(default: Any, help: str, **more: Any) -> Any:
    """Return a field of an argument class."""
    return field(default=default, metadata={"help": help, **more})


@dataclass
class DataArguments:
    """What to train and evaluate on."""

    task_name: str | None = flag(None, "A GLUE task; files have its columns, too.", choices=[*TASK_COLUMNS])
    train_file: str | None = flag(None, "A csv, tsv or json file instead of Hub data.")
    validation_file: str | None = flag(None, "A csv, tsv or json file.")
    test_file: str | None = flag(None, "A csv, tsv or json file.")
    text_column_names: str | None = flag(None, "Text columns of files with other names, such as title,body.")
    max_seq_length: int = flag(128, "Tokens per example; longer ones are truncated.", aliases=["--max_length"])
    pad_to_max_length: bool = flag(True, "Pad to max_seq_length; otherwise to the batch.")
    overwrite_cache: bool = flag(False, "Tokenize again instead of reading the cache.")
    max_train_samples: int | None = flag(None, "Use only the first examples.")
    max_eval_samples: int | None = flag(None, "Use only the first examples.")
    max_predict_samples: int | None = flag(None, "Use only the first examples.")

    def __post_init__(self) -> None:
        smallest = {"max_train_samples": 1, "max_eval_samples": 1, "max_predict_samples": 1}
        check_minimums(self, **smallest, max_seq_length=3)  # [CLS], one token, [SEP]


@dataclass
class ModelArguments:
    """What to train: a checkpoint, or a BERT of the given sizes from scratch."""

    model_name_or_path: str | None = flag(None, "A checkpoint: a Hub id or a folder.")
    tokenizer_name: str | None = flag(None, "A tokenizer; by default the checkpoint's.")
    norm_placement: str | None = flag(
        None,
        "Placement of LayerNorm in a BERT; by default the checkpoint's, and post from scratch.",
        choices=["pre", "post"],
    )
    initializer: str = flag("normal", "Initial values from scratch.", choices=["normal", "xavier_uniform"])
    num_hidden_layers: int = flag(12, "From scratch.")
    hidden_size: int = flag(768, "From scratch.")
    num_attention_heads: int = flag(12, "From scratch.")
    intermediate_size: int = flag(3072, "From scratch.")
    cache_dir: str | None = flag(None, "Folder for downloads from the Hub.")
    model_revision: str = flag("main", "Branch, tag or commit of the checkpoint.")
    token: str | None = flag(None, "Token for gated checkpoints on the Hub.")
    ignore_mismatched_sizes: bool = flag(False, "Replace the checkpoint's head if it has another size.")

    def __post_init__(self) -> None:
        check_minimums(self, **dict.fromkeys(_SIZES, 1))
        for name in ("model_name_or_path", "tokenizer_name"):
            value = getattr(self, name)
            # A Hub id has at most one slash. Without this check the error would be about invalid Hub ids.
            if value and (value.count("/") > 1 or value.startswith((".", "/", "~"))) and not os.path.exists(value):
                raise ValueError(f"{name}={value!r}: there is no such folder.")


def build_model(args: ModelArguments, tokenizer: Any, data: datasets.DatasetDict, max_seq_length: int) -> Any:
    """Return the checkpoint with a classification head for the labels of `data`, or a new model.

    Raises:
        `ValueError`: If the checkpoint has fewer positions than `max_seq_length`, a head of another size, or is not a
            BERT although `norm_placement` is given.
    """
    labels = data["train"].features["label"].names
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if args.model_name_or_path is None:
        config = BertPreLNConfig(
            norm_placement=args.norm_placement or "post",
            vocab_size=max(tokenizer.get_vocab().values()) + 1,  # more than len(tokenizer) if a token occurs twice
            **{name: getattr(args, name) for name in ("initializer", *_SIZES)},
            max_position_embeddings=max(512, max_seq_length),
            pad_token_id=tokenizer.pad_token_id,
            **names,
        )
        return BertPreLNForSequenceClassification(config)
    download = {"cache_dir": args.cache_dir, "revision": args.model_revision, "token": args.token}
    load = {"ignore_mismatched_sizes": args.ignore_mismatched_sizes, **download, **names}
    config = AutoConfig.from_pretrained(args.model_name_or_path, **download)
    longest = getattr(config, "max_position_embeddings", None) or max_seq_length  # some architectures have no limit
    if min(max_seq_length, tokenizer.model_max_length) > longest:
        raise ValueError(
            f"max_seq_length={max_seq_length}: expected at most the {longest} positions of {args.model_name_or_path}."
        )
    model_class: Any = AutoModelForSequenceClassification
    if args.norm_placement is not None:
        if config.model_type not in ("bert", BertPreLNConfig.model_type):
            raise ValueError(
                f"norm_placement={args.norm_placement!r} applies to BERT, but {args.model_name_or_path} is of type "
                f"{config.model_type!r}. Leave it out."
            )
        model_class, load["norm_placement"] = BertPreLNForSequenceClassification, args.norm_placement
    try:
        return model_class.from_pretrained(args.model_name_or_path, **load)
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise ValueError(
            f"{args.model_name_or_path} has a head for another number of classes than the {len(labels)} of the data. "
            "Pass `--ignore_mismatched_sizes` to replace the head."
        ) from None


def load_data(args: DataArguments, wanted: Collection[str]) -> Data:
    """Load a task from the Hub, or the `wanted` splits (`train`, `validation`, `test`) from files."""
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    present = {split: file for split, file in files.items() if file}
    if present:
        if missing := [split for split in files if split in {"train", *wanted} and split not in present]:
            raise ValueError(f"{missing[0]}_file is missing: expected a csv, tsv or json file.")
        text_columns = args.text_column_names.split(",") if args.text_column_names else None
        data, columns = load_files(present, args.task_name, text_columns)
    elif args.task_name:
        data, columns = load_task(args.task_name)
    else:
        raise ValueError("`task_name` and `train_file` are both missing: expected one of them.")
    limits = (args.max_train_samples, args.max_eval_samples, args.max_predict_samples)
    for split, limit in zip(files, limits, strict=True):
        if limit is not None and split in data:
            data[split] = data[split].select(range(min(limit, len(data[split]))))
    return data, columns


def describe_data(data: datasets.DatasetDict, columns: Collection[str]) -> str:
    """Return which columns and classes are used, and the number of examples, for the user to check."""
    names = data["train"].features["label"].names
    sizes = ", ".join(f"{len(rows)} in {split}" for split, rows in data.items())
    return f"Data: text from {' and '.join(columns)}, classes {', '.join(names)}; examples: {sizes}."


def load_tokenizer(args: ModelArguments) -> Any:
    """Load the checkpoint's tokenizer, or a BERT tokenizer from a folder that only has a `vocab.txt`.

    Raises:
        `ValueError`: If no name is given, or if a folder has no vocabulary that a tokenizer can use.
    """
    name = args.tokenizer_name or args.model_name_or_path
    if name is None:
        raise ValueError("`tokenizer_name` and `model_name_or_path` are both missing: expected one of them.")
    vocabulary = Path(name, "vocab.txt")
    # For a vocab.txt alone, AutoTokenizer finds no tokenizer class.
    bare = vocabulary.is_file() and not Path(name, "config.json").is_file()
    if bare:
        _check_vocabulary(vocabulary)
    tokenizer_class = BertTokenizerFast if bare or not args.model_name_or_path else AutoTokenizer
    try:
        tokenizer = tokenizer_class.from_pretrained(name, cache_dir=args.cache_dir)
    except TypeError:
        tokenizer = None  # transformers 4.57 found no file of a vocabulary
    if tokenizer is None or len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise ValueError(
            f"{name} has no vocabulary that {tokenizer_class.__name__} can read: expected a vocab.txt with words."
        )
    return tokenizer


def _check_vocabulary(path: Path) -> None:
    """Check that a `vocab.txt` is text in UTF-8 with BERT's special tokens."""
    try:
        tokens = {line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")}
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a vocabulary in UTF-8.") from None
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in tokens]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: expected the vocabulary of a BERT, one token per line.")


def tokenize(data: datasets.DatasetDict, columns: list[str], tokenizer: Any, args: DataArguments) -> Any:
    """Return the splits as token ids, attention masks and labels; log a warning if most tokens are unknown."""

    def encode(examples: dict[str, list[Any]]) -> Any:
        return tokenizer(
            *(examples[column] for column in columns),
            max_length=min(args.max_seq_length, tokenizer.model_max_length),
            truncation=True,
            padding="max_length" if args.pad_to_max_length else False,
        )

    read_cache = not args.overwrite_cache
    data = data.map(encode, batched=True, load_from_cache_file=read_cache, desc="tokenize").remove_columns(columns)
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    words = [each for ids in data["train"][:1000]["input_ids"] for each in ids if each not in special]
    unknown = words.count(tokenizer.unk_token_id) / max(1, len(words))
    if unknown > 0.5:
        logger.warning(
            f"{unknown:.0%} of the tokens in the training data are unknown to the tokenizer ({tokenizer.unk_token}). "
            "Check that the vocabulary fits the text."
        )
    return data
