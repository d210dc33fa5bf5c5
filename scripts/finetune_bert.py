"""Fine-tune a BERT for sentence classification with `WarmupTrainer`: the flags of transformers' `run_glue.py` and ours.

From a checkpoint, of the hub or of a folder:

    python scripts/finetune_bert.py --model_name_or_path bert-base-uncased --task_name sst2 --do_train --do_eval \
        --optim radam --lr_scheduler_type linear --warmup_type linear --warmup_steps 0.06 --output_dir runs/sst2

A small one from scratch, in minutes on a CPU, from files:

    python scripts/finetune_bert.py --tokenizer_name path/to/vocabulary --task_name sst2 \
        --train_file SST-2/train.tsv --validation_file SST-2/dev.tsv --do_train --do_eval --norm_placement post \
        --num_hidden_layers 6 --hidden_size 128 --num_attention_heads 4 --intermediate_size 512 --max_seq_length 64 \
        --pad_to_max_length false --per_device_train_batch_size 64 --max_steps 450 --learning_rate 2e-3 \
        --weight_decay 0.01 --warmup_type linear --warmup_steps 200 --output_dir runs/sst2_small
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    default_data_collator,
    set_seed,
)

from hf_warmup import BertPreLNConfig, BertPreLNForSequenceClassification, WarmupTrainer, WarmupTrainingArguments
from hf_warmup._messages import check_number
from hf_warmup.cli import one_sentence_for_mistakes, parse_arguments
from hf_warmup.data import TASK_COLUMNS, Data, load_files, load_task
from hf_warmup.metrics import classification_metrics
from hf_warmup.report import draw_comparison, read_run


@dataclass
class DataArguments:
    """What to train and evaluate on."""

    task_name: str | None = field(default=None, metadata={"help": f"A GLUE task: {', '.join(TASK_COLUMNS)}."})
    train_file: str | None = field(default=None, metadata={"help": "A csv, tsv or json file, instead of the hub's."})
    validation_file: str | None = field(default=None, metadata={"help": "A csv, tsv or json file."})
    test_file: str | None = field(default=None, metadata={"help": "A csv, tsv or json file."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens a sequence; longer ones are cut."})
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
    if args.norm_placement is None:
        return AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path, **load)
    model_type = AutoConfig.from_pretrained(args.model_name_or_path, **download).model_type
    if model_type not in ("bert", BertPreLNConfig.model_type):
        raise ValueError(f"norm_placement={args.norm_placement!r}: {model_type} is no BERT, leave it out.")
    return BertPreLNForSequenceClassification.from_pretrained(
        args.model_name_or_path, norm_placement=args.norm_placement, **load
    )


def load_data(args: DataArguments, training_args: WarmupTrainingArguments) -> Data:
    """The task of the hub, or the files; a split for each of `do_train`, `do_eval`, `do_predict`."""
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    wanted = {"train": training_args.do_train, "validation": training_args.do_eval, "test": training_args.do_predict}
    if not any(wanted.values()):
        raise ValueError("do_train, do_eval and do_predict are all off: expected at least one of them.")
    if not any(files.values()):
        if args.task_name is None:
            raise ValueError("task_name and train_file are both missing: expected one of them.")
        return load_task(args.task_name)
    for split, flag in wanted.items():
        if (flag or split == "train") and files[split] is None:
            raise ValueError(f"{split}_file is missing: expected a csv, tsv or json file.")
    return load_files({split: file for split, file in files.items() if file}, args.task_name)


def check_sizes(model_args: ModelArguments, data_args: DataArguments) -> None:
    """Sizes are at least 1, and are refused before anything is loaded."""
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    for name in sizes:
        check_number(name, getattr(model_args, name), 1, integer=True)
    check_number("max_seq_length", data_args.max_seq_length, 3, integer=True)  # [CLS], a token, [SEP]
    for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
        if getattr(data_args, name) is not None:
            check_number(name, getattr(data_args, name), 1, integer=True)


def main() -> None:
    with one_sentence_for_mistakes():
        parser = HfArgumentParser((ModelArguments, DataArguments, WarmupTrainingArguments))
        model_args, data_args, training_args = parse_arguments(parser)
        transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
        set_seed(training_args.seed)
        data, columns = load_data(data_args, training_args)
        tokenizer_name = model_args.tokenizer_name or model_args.model_name_or_path
        if tokenizer_name is None:
            raise ValueError("tokenizer_name and model_name_or_path are both missing: expected one of them.")
        resume = training_args.resume_from_checkpoint
        if resume in ("True", "true"):
            resume = True  # the latest in the output folder, as in the Trainer
        if isinstance(resume, str) and not (Path(resume) / "trainer_state.json").is_file():
            raise ValueError(f"resume_from_checkpoint={resume!r}: there is no such folder with a trainer_state.json.")
        check_sizes(model_args, data_args)
        # A bare vocabulary, enough for a BERT from scratch, names no tokenizer class for AutoTokenizer to find.
        bare = (Path(tokenizer_name) / "vocab.txt").is_file() and not (Path(tokenizer_name) / "config.json").is_file()
        tokenizer_class = BertTokenizerFast if bare or not model_args.model_name_or_path else AutoTokenizer
        tokenizer = tokenizer_class.from_pretrained(tokenizer_name, cache_dir=model_args.cache_dir)
        model = build_model(model_args, tokenizer, data, data_args.max_seq_length)

    def tokenize(examples: dict[str, list[Any]]) -> Any:
        return tokenizer(
            *(examples[column] for column in columns),
            max_length=min(data_args.max_seq_length, tokenizer.model_max_length),
            truncation=True,
            padding="max_length" if data_args.pad_to_max_length else False,
        )

    limits = {
        "train": data_args.max_train_samples,
        "validation": data_args.max_eval_samples,
        "test": data_args.max_predict_samples,
    }
    for split, limit in limits.items():
        if limit is not None and split in data:
            data[split] = data[split].select(range(min(limit, len(data[split]))))
    with training_args.main_process_first(desc="tokenization"):
        data = data.map(
            tokenize, batched=True, load_from_cache_file=not data_args.overwrite_cache, desc="tokenize"
        ).remove_columns(columns)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return classification_metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))

    with one_sentence_for_mistakes():
        trainer = WarmupTrainer(
            model=model,
            args=training_args,
            train_dataset=data["train"] if training_args.do_train else None,
            eval_dataset=data["validation"] if training_args.do_eval else None,
            compute_metrics=compute_metrics,
            processing_class=tokenizer,
            data_collator=default_data_collator
            if data_args.pad_to_max_length
            else DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if training_args.fp16 else None),
        )

    if training_args.do_train:
        with one_sentence_for_mistakes():
            output = trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        trainer.log_metrics("train", output.metrics)
        trainer.save_metrics("train", output.metrics)
        trainer.save_state()
        if trainer.is_world_process_zero() and importlib.util.find_spec("matplotlib"):
            figures = draw_comparison([read_run(training_args.output_dir)], training_args.output_dir)
            print("Wrote " + ", ".join(map(str, figures)))
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.do_predict:
        names = data["train"].features["label"].names
        predicted = trainer.predict(data["test"].remove_columns("label"), metric_key_prefix="predict").predictions
        rows = "".join(f"{i}\t{names[label]}\n" for i, label in enumerate(predicted.argmax(-1)))
        if trainer.is_world_process_zero():
            (Path(training_args.output_dir) / "predict_results.txt").write_text("index\tprediction\n" + rows)


if __name__ == "__main__":
    sys.exit(main())
