"""What the two fine-tuning scripts share: a BERT for sentence classification, its data, and the flags for both."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

from hf_warmup._validation import check_number
from hf_warmup.modeling_bert_pre_ln import BertPreLNConfig, BertPreLNForSequenceClassification

from .data import TASK_COLUMNS, Data, load_files, load_task


@dataclass
class DataArguments:
    """What to train and evaluate on."""

    task_name: str | None = field(default=None, metadata={"help": f"A GLUE task: {', '.join(TASK_COLUMNS)}."})
    train_file: str | None = field(default=None, metadata={"help": "A csv, tsv or json file, instead of the hub's."})
    validation_file: str | None = field(default=None, metadata={"help": "A csv, tsv or json file."})
    test_file: str | None = field(default=None, metadata={"help": "A csv, tsv or json file."})
    max_seq_length: int = field(
        default=128, metadata={"help": "Tokens a sequence; longer ones are cut.", "aliases": ["--max_length"]}
    )
    pad_to_max_length: bool = field(default=True, metadata={"help": "Pad to max_seq_length, not to the batch's."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first so many."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use the first so many."})


@dataclass
class ModelArguments:
    """What to train: a checkpoint, or, without one, a BERT of these sizes from scratch."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint of the hub or of a folder."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "If it is not the checkpoint's."})
    norm_placement: str | None = field(
        default=None, metadata={"help": "pre or post, for a BERT; by default as the checkpoint is, post from scratch."}
    )
    initializer: str = field(default="normal", metadata={"help": "From scratch: normal or xavier_uniform."})
    num_hidden_layers: int = field(default=12, metadata={"help": "From scratch."})
    hidden_size: int = field(default=768, metadata={"help": "From scratch."})
    num_attention_heads: int = field(default=12, metadata={"help": "From scratch."})
    intermediate_size: int = field(default=3072, metadata={"help": "From scratch."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where what the hub sends is kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "For checkpoints of the hub that need one."})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Replace a head of another size."})


def build_model(args: ModelArguments, tokenizer: Any, data: datasets.DatasetDict, max_seq_length: int) -> Any:
    """The checkpoint's model with a head for the labels of `data`, or a new one."""
    labels = data["train"].features["label"].names
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if args.model_name_or_path is None:
        config = BertPreLNConfig(
            norm_placement=args.norm_placement or "post",
            initializer=args.initializer,
            vocab_size=len(tokenizer),
            num_hidden_layers=args.num_hidden_layers,
            hidden_size=args.hidden_size,
            num_attention_heads=args.num_attention_heads,
            intermediate_size=args.intermediate_size,
            max_position_embeddings=max(512, max_seq_length),
            pad_token_id=tokenizer.pad_token_id,
            **names,
        )
        return BertPreLNForSequenceClassification(config)
    download = {"cache_dir": args.cache_dir, "revision": args.model_revision, "token": args.token}
    load = {"ignore_mismatched_sizes": args.ignore_mismatched_sizes, **download, **names}
    config = AutoConfig.from_pretrained(args.model_name_or_path, **download)
    longest = getattr(config, "max_position_embeddings", None) or max_seq_length  # not every kind of model has a limit
    if min(max_seq_length, tokenizer.model_max_length) > longest:
        raise ValueError(
            f"max_seq_length={max_seq_length}: expected at most the {longest} positions of {args.model_name_or_path}."
        )
    if args.norm_placement is None:
        return AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path, **load)
    if config.model_type not in ("bert", BertPreLNConfig.model_type):
        raise ValueError(f"norm_placement={args.norm_placement!r}: {config.model_type} is no BERT, leave it out.")
    return BertPreLNForSequenceClassification.from_pretrained(
        args.model_name_or_path, norm_placement=args.norm_placement, **load
    )


def load_data(args: DataArguments, wanted: Collection[str]) -> Data:
    """The task of the hub, or the files: the `wanted` ones of the splits train, validation and test."""
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    if not any(files.values()):
        if args.task_name is None:
            raise ValueError("task_name and train_file are both missing: expected one of them.")
        data, columns = load_task(args.task_name)
    else:
        for split, file in files.items():
            if (split in wanted or split == "train") and file is None:
                raise ValueError(f"{split}_file is missing: expected a csv, tsv or json file.")
        data, columns = load_files({split: file for split, file in files.items() if file}, args.task_name)
    limits = (args.max_train_samples, args.max_eval_samples, args.max_predict_samples)
    for split, limit in zip(files, limits, strict=True):
        if limit is not None and split in data:
            data[split] = data[split].select(range(min(limit, len(data[split]))))
    return data, columns


def load_tokenizer(args: ModelArguments) -> Any:
    """The checkpoint's, or a BERT's from a folder with nothing but its vocabulary."""
    name = args.tokenizer_name or args.model_name_or_path
    if name is None:
        raise ValueError("tokenizer_name and model_name_or_path are both missing: expected one of them.")
    # A bare vocabulary, enough for a BERT from scratch, names no tokenizer class for AutoTokenizer to find.
    bare = (Path(name) / "vocab.txt").is_file() and not (Path(name) / "config.json").is_file()
    tokenizer_class = BertTokenizerFast if bare or not args.model_name_or_path else AutoTokenizer
    return tokenizer_class.from_pretrained(name, cache_dir=args.cache_dir)


def tokenize(data: datasets.DatasetDict, columns: list[str], tokenizer: Any, args: DataArguments) -> Any:
    """The splits as token ids, attention masks and labels."""

    def encode(examples: dict[str, list[Any]]) -> Any:
        return tokenizer(
            *(examples[column] for column in columns),
            max_length=min(args.max_seq_length, tokenizer.model_max_length),
            truncation=True,
            padding="max_length" if args.pad_to_max_length else False,
        )

    fresh = not args.overwrite_cache
    return data.map(encode, batched=True, load_from_cache_file=fresh, desc="tokenize").remove_columns(columns)


def check_sizes(model_args: ModelArguments, data_args: DataArguments) -> None:
    """Sizes are at least 1, and are refused before anything is loaded."""
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    for name in sizes:
        check_number(name, getattr(model_args, name), 1, integer=True)
    check_number("max_seq_length", data_args.max_seq_length, 3, integer=True)  # [CLS], a token, [SEP]
    for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
        if getattr(data_args, name) is not None:
            check_number(name, getattr(data_args, name), 1, integer=True)
