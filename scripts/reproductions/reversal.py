"""The reversal task: a small BERT learns to reverse 16 random tokens. Its data, one training run, and sets of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from hf_warmup import BertPreLNConfig, BertPreLNForMaskedLM, WarmupTrainer, WarmupTrainingArguments, make_pair

from .kept_runs import Result, Settings, run_all
from .outcome import ReproduceArguments, table_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes


FIRST_SYMBOL, VOCAB_SIZE, SEQUENCE_LENGTH = 5, 32, 16
WIDTH, HEADS = 64, 4
CHANCE_LOSS = torch.tensor(float(VOCAB_SIZE - FIRST_SYMBOL)).log().item()
HELD_OUT = 256
TARGET_LOSS = 0.5


def reversal_data(num_examples: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return `num_examples` sequences of 16 random symbols with their reversals as labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(FIRST_SYMBOL, VOCAB_SIZE, (num_examples, SEQUENCE_LENGTH), generator=generator)
    return [{"input_ids": x, "labels": x.flip(0)} for x in tokens]


def build_pair(
    seed: int, layers: int, width: int = WIDTH, vocab_size: int = VOCAB_SIZE, length: int = SEQUENCE_LENGTH, **more: Any
) -> tuple[BertPreLNForMaskedLM, BertPreLNForMaskedLM]:
    """Return a Post-LN and a Pre-LN BERT without dropout, with the same initial values (by default Xavier's)."""
    settings: Settings = {
        "initializer": "xavier_uniform",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * width,
        "max_position_embeddings": length,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return make_pair(BertPreLNConfig(**(settings | more)), seed)


def accuracy(prediction: Any) -> dict[str, float]:
    """Return the share of positions at which the most likely symbol is correct."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def training_arguments(settings: dict[str, Any], folder: Path) -> WarmupTrainingArguments:
    """Return the training arguments of a run with these settings."""
    # The other warmups follow from beta2 and take no length.
    has_length = settings["warmup_type"] not in ("none", "auto", "untuned_linear", "untuned_exponential", "radam")
    return WarmupTrainingArguments(
        output_dir=str(folder),
        optim=settings["optim"],
        optim_args=settings.get("optim_args"),
        learning_rate=settings["learning_rate"],
        adam_beta2=0.98,
        lr_scheduler_type=settings.get("lr_scheduler_type", "constant"),
        lr_scheduler_kwargs=settings.get("lr_scheduler_kwargs"),
        warmup_type=settings["warmup_type"],
        guard=settings.get("guard", "warn"),
        warmup_steps=settings["warmup_steps"] if has_length or settings["optim"] == "adam_warmup" else 0,
        max_steps=settings["max_steps"],
        per_device_train_batch_size=32,
        per_device_eval_batch_size=HELD_OUT,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings["seed"],
    )


class StopWhenSolved(TrainerCallback):
    """A callback that stops a run once it reaches `TARGET_LOSS`."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if logs.get("loss", TARGET_LOSS) < TARGET_LOSS:
            control.should_training_stop = True


def run_one(
    settings: dict[str, Any], folder: Path, trainer_class: type[WarmupTrainer] = WarmupTrainer
) -> dict[str, Any]:
    """Train one configuration with one seed and return its result."""
    seed = settings["seed"]
    args = training_arguments(settings, folder)
    set_seed(seed)
    post, pre = build_pair(seed, settings["num_hidden_layers"])
    trainer = trainer_class(
        model=post if settings["norm_placement"] == "post" else pre,
        args=args,
        train_dataset=reversal_data(args.max_steps * args.per_device_train_batch_size, seed=seed),
        eval_dataset=reversal_data(HELD_OUT, seed=seed + 1_000_000),
        compute_metrics=accuracy,
    )
    trainer.remove_callback(PrinterCallback)
    if settings.get("stop_when_solved"):
        trainer.add_callback(StopWhenSolved)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_state()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "warmup_steps": args.get_warmup_steps(args.max_steps),
        "final_loss": metrics["eval_loss"],
        "accuracy": metrics["eval_accuracy"],
        "rewinds": [each["step"] for each in trainer.guard.rewinds] if trainer.guard else [],
        "steps_to_loss_0.5": next((entry["step"] for entry in history if entry["loss"] < TARGET_LOSS), None),
    }


WARMUP_STEPS = 100  # 2 / (1 - beta2) at the task's beta2 of 0.98
# Noam's curve has its peak at the learning rate. The untuned warmup is exponential, because the untuned linear one has
# 100 updates, too.
WARMUPS: dict[str, Settings] = {
    "none": {"warmup_type": "none"},
    "linear": {"warmup_type": "linear"},
    "constant": {"warmup_type": "constant"},
    "untuned": {"warmup_type": "untuned_exponential", "lr_scheduler_kwargs": {"beta2": 0.98}},  # SGD has no beta2
    "noam": {"warmup_type": "linear", "lr_scheduler_type": "noam"},
}


def job(placement: str, optim: str, warmup: str, lr: float, steps: int, seed: int, optim_args: str = "") -> Settings:
    """Return the settings of one run."""
    return {
        "norm_placement": placement,
        "optim": optim,
        "warmup_steps": min(WARMUP_STEPS, steps),
        "learning_rate": lr,
        "max_steps": steps,
        "num_hidden_layers": 6,
        "stop_when_solved": True,
        "seed": seed,
        **WARMUPS[warmup],
        **({"optim_args": optim_args} if optim_args else {}),
    }


def folder_name(settings: Settings) -> str:
    """Return a folder name from the settings in which the runs of one reproduction differ."""
    optim = "_".join(filter(None, (settings["optim"], settings.get("optim_args"))))
    warmup = "noam" if settings.get("lr_scheduler_type") == "noam" else settings["warmup_type"]
    guard = f"-{settings['guard']}" if "guard" in settings else ""
    lr = f"{settings['learning_rate']:g}"
    return f"{settings['norm_placement']}-{optim}-{warmup}{guard}-lr{lr}-seed{settings['seed']}"


def run_jobs(jobs: Iterable[Settings], args: ReproduceArguments) -> list[Result]:
    """Execute the runs that have no result yet; return all results in the order of `jobs`."""
    planned = {folder_name(settings): settings for settings in jobs}
    return run_all(run_one, planned, args.folder / "runs", args.num_workers)


def solved(results: Iterable[Result]) -> list[int]:
    """Return the updates to loss 0.5 of the runs that reached it."""
    return [result["steps_to_loss_0.5"] for result in results if result["steps_to_loss_0.5"] is not None]


def measures(runs: Mapping[str, list[Result]]) -> dict[str, dict[str, list[float]]]:
    """Return the metrics of a card: the share of runs that solved the task, and the updates of those that did."""
    named = {name: results for name, results in runs.items() if results}
    return {
        "solved": {name: [float(bool(solved([result]))) for result in results] for name, results in named.items()},
        "updates to loss 0.5": {name: solved(results) for name, results in named.items() if solved(results)},
    }


def folder_of(args: ReproduceArguments, result: Result) -> Path:
    """Return the folder of a run."""
    return args.folder / "runs" / folder_name(result)


def in_words(results: list[Result]) -> str:
    """Return how many runs solved the task and after how many updates on average, such as `3/3 at 152`."""
    if not results:
        return "-"
    updates = solved(results)
    return f"{len(updates)}/{len(results)}" + (f" at {mean(updates):.0f}" if updates else "")


def draw_grid(axes: Axes, cells: Sequence[Sequence[list[Result]]], rows: Sequence[str], columns: Sequence[str]) -> str:
    """Draw a table of runs, coloured by the share of seeds that solved the task, and return it as text."""
    shares = [[len(solved(cell)) / len(cell) if cell else float("nan") for cell in line] for line in cells]
    axes.imshow(shares, cmap="RdYlBu", vmin=-0.35, vmax=1.35, aspect="auto")
    for i, line in enumerate(cells):
        for j, cell in enumerate(line):
            axes.text(j, i, in_words(cell), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return table_of(["", *columns], [[row, *map(in_words, line)] for row, line in zip(rows, cells, strict=True)])


def all_solved(results: list[Result]) -> bool | None:
    """Return whether every run solved the task; `None` without runs."""
    return len(solved(results)) == len(results) if results else None


def none_solved(results: list[Result]) -> bool | None:
    """Return whether no run solved the task; `None` without runs."""
    return not solved(results) if results else None
