"""One pretraining run and one fine-tuning run of a small BERT on real text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import (
    BertTokenizerFast,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    default_data_collator,
    set_seed,
)
from transformers.modeling_outputs import MaskedLMOutput

from hf_warmup import (
    BertPreLNConfig,
    BertPreLNForMaskedLM,
    BertPreLNForSequenceClassification,
    WarmupTrainer,
    WarmupTrainingArguments,
    make_pair,
)
from hf_warmup.report import find, mean_and_spread, read_run

from ..text_classification.arguments import DataArguments, load_data, tokenize
from ..text_classification.metrics import compute_metrics
from .kept_runs import Result, Settings
from .outcome import Verdict, table_of
from .texts import LENGTH, load_vocabulary, sequences


BATCH, SAVES = 32, 10
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
MEASURED = ("loss", "accuracy", "roc_auc", "bleu")
CLASSIFICATION = {"accuracy": itemgetter("accuracy"), "area under the ROC curve": itemgetter("roc_auc")}


class LossAtMasks(BertPreLNForMaskedLM):
    """A BERT that computes vocabulary scores at masked positions only, which is 15 % of the work."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> MaskedLMOutput:
        hidden = self.bert(input_ids=input_ids, **kwargs).last_hidden_state
        masked = labels != -100
        return MaskedLMOutput(loss=cross_entropy(self.cls(hidden[masked]), labels[masked]))


class Masking(DataCollatorForLanguageModeling):
    """A collator that masks training examples differently each time; held-out examples are already masked."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, Any]:
        if "labels" in features[0]:
            return default_data_collator(features)
        return super().__call__(features, return_tensors)


class PrintEvaluations(TrainerCallback):
    """A callback that prints one line per evaluation; progress bars of parallel runs would overwrite each other."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        measured = [f"{name} {metrics[f'eval_{name}']:.3f}" for name in MEASURED if f"eval_{name}" in metrics]
        tqdm.write(f"{Path(args.output_dir).name}: update {state.global_step}/{state.max_steps}, {', '.join(measured)}")


def arguments(settings: Settings, folder: Path, evaluations: int) -> dict[str, Any]:
    """Return training arguments for a linear decay with a warmup over the first tenth of the run, or without warmup.

    Optional settings are `optim`, `warmup_steps`, `batch_size` and `guard`.
    """
    every = max(1, settings["max_steps"] // evaluations)
    has_length = settings["warmup_type"] not in ("none", "untuned_exponential")
    return {
        "output_dir": str(folder),
        "optim": settings.get("optim", "adamw"),
        "learning_rate": settings["learning_rate"],
        "weight_decay": 0.01,
        "lr_scheduler_type": "linear",
        "warmup_type": settings["warmup_type"],
        "warmup_steps": settings.get("warmup_steps", 0.1) if has_length else 0,
        "max_steps": settings["max_steps"],
        "per_device_train_batch_size": settings.get("batch_size", BATCH),
        "per_device_eval_batch_size": 64,
        "eval_strategy": "steps",
        "eval_steps": every,
        "logging_steps": every,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": settings["seed"],
        "guard": settings.get("guard", "off"),
    }


def train(trainer: Trainer, resume: str | None = None) -> None:
    """Train with one line per evaluation, and save the log."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(PrintEvaluations())
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_state()


def evaluations(trainer: Trainer, *names: str) -> list[list[float]]:
    """Return one row per evaluation: the update and the values of `names`."""
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return [[entry["step"], *(entry[f"eval_{name}"] for name in names)] for entry in entries]


def small_pair(settings: Settings, tokenizer: Any) -> tuple[LossAtMasks, LossAtMasks]:
    """Return a Post-LN and a Pre-LN model with the same initial values."""
    config = BertPreLNConfig(
        initializer="xavier_uniform",
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        **{name: settings[name] for name in SIZES},
    )
    return make_pair(config, settings["seed"], LossAtMasks)


def pretrain_one(settings: Settings, folder: Path, texts: Path) -> Result:
    """Pretrain one configuration; save its model and return the held-out losses as `[update, loss]`."""
    tokenizer = load_vocabulary(texts)
    training, held_out = sequences(texts, tokenizer)
    masking = Masking(tokenizer)
    pair = dict(zip(("post", "pre"), small_pair(settings, tokenizer), strict=True))
    save = max(1, settings["max_steps"] // SAVES)
    more = {"prediction_loss_only": True, "grad_norm_steps": save, "save_steps": save, "save_total_limit": 1}
    args = WarmupTrainingArguments(**(arguments(settings, folder, 20) | more))
    set_seed(settings["seed"])  # the same masks in both configurations
    masked = masking([{"input_ids": ids} for ids in held_out])
    columns = ("input_ids", "labels")
    trainer = WarmupTrainer(
        model=pair[settings["norm_placement"]],
        args=args,
        train_dataset=[{"input_ids": ids} for ids in training],
        eval_dataset=[dict(zip(columns, row, strict=True)) for row in zip(*(masked[c] for c in columns), strict=True)],
        data_collator=masking,
    )
    train(trainer, resume="auto")
    trainer.save_model()
    return {"evaluations": evaluations(trainer, "loss")}


def task_files(task: str, texts: Path, polarity: Path | None) -> tuple[Path, Path]:
    """Return the training and the validation file of a task."""
    if task == "MR" and polarity is not None:
        return polarity / "train.csv", polarity / "validation.csv"
    return texts / "glue" / task / "train.tsv", texts / "glue" / task / "dev.tsv"


def finetune_one(
    settings: Settings, folder: Path, texts: Path, checkpoints: Path | None = None, polarity: Path | None = None
) -> Result:
    """Train a classifier on one task, from a checkpoint or from scratch.

    Args:
        settings (`Settings`): Besides those of [`arguments`], `task`, `norm_placement`, `checkpoint` or the sizes of a
            new model, and optionally `max_length` (tokens) and `max_eval_samples`.
        folder (`Path`): The run folder.
        texts (`Path`): The data folder.
        checkpoints (`Path`, *optional*): The folder that contains the checkpoint; none for a model from scratch.
        polarity (`Path`, *optional*): The folder with the csv files of the task `MR`.

    Returns:
        `Result`: Evaluations as `[update, loss, accuracy, area under the ROC curve]`, the last accuracy and area, and
            the accuracy of always predicting the majority class.
    """
    checkpoint = checkpoints / settings["checkpoint"] if checkpoints else None
    has_vocabulary = checkpoint and any((checkpoint / name).exists() for name in ("vocab.txt", "tokenizer.json"))
    tokenizer = BertTokenizerFast.from_pretrained(checkpoint) if has_vocabulary else load_vocabulary(texts)
    train_file, validation_file = map(str, task_files(settings["task"], texts, polarity))
    wanted = DataArguments(
        train_file=train_file,
        validation_file=validation_file,
        max_seq_length=settings.get("max_length", LENGTH),
        pad_to_max_length=False,
        max_train_samples=settings.get("batch_size", BATCH) * settings["max_steps"],
        max_eval_samples=settings.get("max_eval_samples"),
    )
    data, columns = load_data(wanted, ("train", "validation"))
    data = tokenize(data, columns, tokenizer, wanted)
    set_seed(settings["seed"])  # for the initial values of the head
    placement = settings["norm_placement"]
    if checkpoint:
        model = BertPreLNForSequenceClassification.from_pretrained(checkpoint, num_labels=2, norm_placement=placement)
    else:
        sizes = {name: settings[name] for name in SIZES}
        config = BertPreLNConfig(vocab_size=len(tokenizer), norm_placement=placement, num_labels=2, **sizes)
        model = BertPreLNForSequenceClassification(config)
    trainer = WarmupTrainer(
        model=model,
        args=WarmupTrainingArguments(
            **arguments(settings, folder, settings.get("num_evaluations", 10)),
            grad_norm_steps=settings.get("grad_norm_steps", 10),
            save_strategy="no",
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=compute_metrics,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    train(trainer)
    curve = evaluations(trainer, "loss", "accuracy", "roc_auc")
    labels = data["validation"]["label"][:]
    majority = max(Counter(labels).values()) / len(labels)
    return {"evaluations": curve, "accuracy": curve[-1][2], "roc_auc": curve[-1][3], "majority": majority}


def grid(
    configurations: Mapping[str, Settings], rates: Iterable[float], seeds: Iterable[int], common: Settings
) -> dict[str, Settings]:
    """Return folder name -> settings of all runs; seed by seed, so that an interrupted set has every configuration."""
    return {
        f"{name.replace(', ', '-').replace(' ', '_')}-lr{lr:g}-seed{seed}": {
            "name": name, "learning_rate": lr, "seed": seed, **configurations[name], **common
        }
        for seed, lr, name in product(seeds, rates, configurations)
    }  # fmt: skip


def runs_with_problems(folder: Path, jobs: Iterable[str]) -> set[str]:
    """Return the names of the run folders in which the report finds a problem."""
    return {name for name in jobs if any(finding.is_problem for finding in find(read_run(folder / name)))}


def summary(
    results: Iterable[Result],
    measures: Mapping[str, Callable[[Result], float]],
    name: Callable[[Result], str] = lambda run: f"{run['name']}, lr {run['learning_rate']:g}",
) -> tuple[str, dict[str, dict[str, list[float]]]]:
    """Return a table with one row per configuration, and measure -> configuration -> one value per seed."""
    named: dict[str, list[Result]] = {}
    for result in results:
        named.setdefault(name(result), []).append(result)
    measured = {
        words: {name: list(map(measure, runs)) for name, runs in named.items()} for words, measure in measures.items()
    }
    rows = [[name, *(mean_and_spread(values[name]) for values in measured.values())] for name in named]
    return table_of(["", *measured], rows), measured


def judge_findings(failed: set[str], problems: set[str], names: Iterable[str], what: str, enough: bool) -> Verdict:
    """Judge whether the report finds a problem in the runs that failed, and in no others."""
    sound = set(names) - failed
    missed, alarms = failed - problems, sound & problems
    return Verdict(
        f"the report's findings separate failed runs ({what}) from sound ones (here: no failed run without a finding, "
        "findings in at most one in 20 sound runs)",
        "hf_warmup",
        f"{len(failed)} failed runs, {len(missed)} without a finding; findings in {len(alarms)} of {len(sound)} sound "
        "runs",
        not missed and 20 * len(alarms) <= len(sound) if enough and failed else None,
    )
