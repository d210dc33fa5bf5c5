"""One pretraining run and one fine-tuning run, kept in their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PrinterCallback,
    default_data_collator,
    set_seed,
)
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import logging

from compare_layer_norm import accuracy, finished
from hf_warmup import (
    BertPreLNConfig,
    BertPreLNForMaskedLM,
    BertPreLNForSequenceClassification,
    WarmupTrainer,
    WarmupTrainingArguments,
    make_pair,
)
from hf_warmup.finetuning import DataArguments, load_data, tokenize

from .texts import LENGTH, load_vocabulary, sequences


BATCH, EVALUATIONS = 32, 20


class LossAtMasks(BertPreLNForMaskedLM):
    """Its loss, with the vocabulary's scores computed at the masked positions alone: 15 % of that work."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> MaskedLMOutput:
        hidden = self.bert(input_ids=input_ids, **kwargs).last_hidden_state
        masked = labels != -100
        return MaskedLMOutput(loss=cross_entropy(self.cls(hidden[masked]), labels[masked]))


class Masking(DataCollatorForLanguageModeling):
    """Masks what is trained on anew each time; what is masked already, held out, stays as it is."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, Any]:
        if "labels" in features[0]:
            return default_data_collator(features)
        return super().__call__(features, return_tensors)


def remembered(
    run_one: Callable[..., dict[str, Any]], settings: dict[str, Any], folder: Path, *inputs: Path
) -> dict[str, Any]:
    """The result of `run_one`, from `folder` if it has been run with the same settings."""
    if (result := finished(settings, folder)) is not None:
        return result
    logging.set_verbosity_error()
    set_seed(settings["seed"])
    result = {"settings": settings, **run_one(settings, folder, *inputs)}
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    return result


def arguments(settings: dict[str, Any], folder: Path, **more: Any) -> WarmupTrainingArguments:
    """What both kinds of run share: AdamW with a linear decay, on the CPU unless there is a GPU."""
    return WarmupTrainingArguments(
        output_dir=str(folder),
        optim="adamw",
        learning_rate=settings["learning_rate"],
        weight_decay=0.01,
        lr_scheduler_type="linear",
        max_steps=settings["max_steps"],
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        save_strategy="no",
        disable_tqdm=False,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings["seed"],
        **more,
    )


def pretrain_one(settings: dict[str, Any], folder: Path, texts: Path) -> dict[str, Any]:
    """Pretrain one arm; its model and the held-out losses `[update, loss]`."""
    tokenizer = load_vocabulary(texts)
    training, held_out = sequences(texts, tokenizer)
    masking = Masking(tokenizer)
    size = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    config = BertPreLNConfig(
        initializer="xavier_uniform",
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        **{name: settings[name] for name in size},
    )
    pair = dict(zip(("post", "pre"), make_pair(config, settings["seed"], LossAtMasks), strict=True))
    warms_up = settings["warmup_type"] != "none"
    every = max(1, settings["max_steps"] // EVALUATIONS)
    args = arguments(
        settings,
        folder,
        warmup_type=settings["warmup_type"],
        warmup_steps=0.1 if warms_up else 0,
        logging_steps=every,
        eval_strategy="steps",
        eval_steps=every,
        prediction_loss_only=True,
        grad_norm_steps=every,
    )
    set_seed(settings["seed"])  # the same masks in both arms, held out and in training
    masked = masking([{"input_ids": ids} for ids in held_out])
    columns = ("input_ids", "labels")
    trainer = WarmupTrainer(
        model=pair[settings["norm_placement"]],
        args=args,
        train_dataset=[{"input_ids": ids} for ids in training],
        eval_dataset=[dict(zip(columns, row, strict=True)) for row in zip(*(masked[c] for c in columns), strict=True)],
        data_collator=masking,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    history = [[entry["step"], entry["eval_loss"]] for entry in trainer.state.log_history if "eval_loss" in entry]
    return {"evaluations": history}


def finetune_one(settings: dict[str, Any], folder: Path, texts: Path, checkpoint: Path) -> dict[str, Any]:
    """Fine-tune a pretrained model on one task with one seed; its accuracy on the development set."""
    task, tokenizer = texts / "glue" / settings["task"], load_vocabulary(texts)
    wanted = DataArguments(
        task_name=settings["task"].lower().replace("-", ""),
        train_file=str(task / "train.tsv"),
        validation_file=str(task / "dev.tsv"),
        max_seq_length=LENGTH,
        pad_to_max_length=False,
        max_train_samples=BATCH * settings["max_steps"],
    )
    data, columns = load_data(wanted, ("train", "validation"))
    data = tokenize(data, columns, tokenizer, wanted)
    trainer = WarmupTrainer(
        model=BertPreLNForSequenceClassification.from_pretrained(checkpoint, num_labels=2),
        args=arguments(settings, folder, warmup_type="linear", warmup_steps=0.1, logging_steps=10, grad_norm_steps=0),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=accuracy,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"accuracy": trainer.evaluate()["eval_accuracy"]}
