"""Fine-tune a BERT for sentence classification in an Accelerate loop, as a template for your own loop.

The script takes the flags of transformers' `run_glue_no_trainer.py` and those of hf_warmup:

    accelerate launch --config_file scripts/accelerate_configs/ddp.yaml scripts/finetune_bert_no_trainer.py \
        --model_name_or_path bert-base-uncased --task_name sst2 --max_length 128 --learning_rate 2e-5 \
        --optim radam --lr_scheduler_type cosine --warmup_type linear --num_warmup_steps 500 --output_dir runs/sst2

A small model from scratch, from files, in one process on a CPU, which resumes after an interruption:

    python scripts/finetune_bert_no_trainer.py --tokenizer_name path/to/vocabulary --task_name sst2 \
        --train_file SST-2/train.tsv --validation_file SST-2/dev.tsv --num_hidden_layers 2 --hidden_size 128 \
        --num_attention_heads 4 --intermediate_size 512 --max_length 64 --pad_to_max_length false \
        --per_device_train_batch_size 64 --learning_rate 5e-4 --max_train_steps 300 --num_warmup_steps 100 \
        --checkpointing_steps 50 --resume_from_checkpoint auto --output_dir runs/sst2_loop
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, set_seed
from datasets.utils.logging import disable_progress_bar
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, HfArgumentParser, TrainerState, default_data_collator

from hf_warmup import GradientNormRecorder, StopOnSignalCallback
from hf_warmup.accelerate_utils import (
    check_accelerator,
    create_optimizer,
    create_scheduler,
    load_checkpoint,
    lock_output_dir,
    record_gradient_norms,
    save_checkpoint,
)
from hf_warmup.checkpoints import check_same_arguments
from hf_warmup.cli import (
    RESUME_HINT,
    check_minimums,
    check_process_count,
    exit_on_user_error,
    parse_arguments,
    read_mapping,
)
from hf_warmup.norms import GRADIENT_NORMS_FILE
from hf_warmup.optim import effective_learning_rates
from hf_warmup.report.run import TRAINER_STATE_FILE, write_run_end, write_run_settings
from hf_warmup.schedules import updates_of_share
from text_classification.arguments import (
    DataArguments,
    ModelArguments,
    build_model,
    describe_data,
    flag,
    load_data,
    load_tokenizer,
    tokenize,
)
from text_classification.metrics import classification_metrics


@dataclass
class LoopArguments:
    """How to train."""

    output_dir: str = field(metadata={"help": "Where checkpoints, the model and the recording go."})
    per_device_train_batch_size: int = flag(8, "Examples per process and micro-batch.")
    per_device_eval_batch_size: int = flag(8, "Examples per process.")
    learning_rate: float = flag(5e-5, "Peak learning rate, if the schedule has a peak.")
    weight_decay: float = flag(0.0, "Weight decay, except for biases and LayerNorms.")
    adam_beta1: float = flag(0.9, "For the Adam family.")
    adam_beta2: float = flag(0.999, "For the Adam family and the untuned warmups.")
    adam_epsilon: float = flag(1e-8, "For the Adam family.")
    num_train_epochs: int = flag(3, "Epochs, unless max_train_steps is given.")
    max_train_steps: int | None = flag(None, "Updates; overrides num_train_epochs.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches per update.")
    max_grad_norm: float = flag(1.0, "Clip the gradient to this norm; 0 for no clipping.")
    optim: str = flag("adamw", "A name in hf_warmup.OPTIMIZERS, or an import path.")
    optim_args: str | None = flag(None, "Options of the optimizer as key=value,key=value.")
    lr_scheduler_type: str = flag("linear", "A decay, or a schedule of transformers.")
    lr_scheduler_kwargs: str | None = flag(None, "Options of decay and warmup as JSON.")
    warmup_type: str | None = flag(None, "The warmup before the decay.")
    num_warmup_steps: float = flag(0, "Updates of warmup for any number of processes; a value below 1 is a ratio.")
    learning_rate_mapping: str | None = flag(None, "Learning rates as JSON: regular expression of names to number.")
    layerwise_lr_decay: float | None = flag(None, "Factor of the learning rate for each block below the head.")
    seed: int = flag(42, "Seed of the model, the order of the data, and dropout.")
    split_batches: bool = flag(False, "The batch size is the total over all processes.")
    checkpointing_steps: str | None = flag(None, "Updates between checkpoints, or 'epoch'.")
    checkpoints_total_limit: int | None = flag(None, "Number of checkpoints to keep.")
    resume_from_checkpoint: str | None = flag(
        None, "A checkpoint; 'true': the latest complete one; 'auto': the same, if there is one."
    )
    stop_on_signal: bool = flag(False, "Save a checkpoint and stop on SIGTERM or SIGUSR1.")
    grad_norm_steps: int = flag(1, "Record gradient norms every N updates; 0 for never.")
    grad_norm_group_by: str = flag("layer", "layer, module or parameter.")
    logging_steps: int = flag(10, "Log every N updates; each entry waits for the device.")
    with_tracking: bool = flag(False, "Log to the trackers in report_to.")
    report_to: str = flag("all", "Trackers for with_tracking, such as tensorboard.")
    process_group_timeout: int = flag(1800, "Seconds to wait for another process.")

    def __post_init__(self) -> None:
        check_minimums(self, per_device_train_batch_size=1, per_device_eval_batch_size=1, gradient_accumulation_steps=1)
        check_minimums(self, num_train_epochs=1, max_train_steps=1, checkpoints_total_limit=1, logging_steps=1)
        check_minimums(self, learning_rate=0, weight_decay=0, max_grad_norm=0, grad_norm_steps=0, num_warmup_steps=0)
        check_minimums(self, seed=0, process_group_timeout=1)
        if self.num_warmup_steps > 1 and self.num_warmup_steps % 1:
            raise ValueError(f"num_warmup_steps={self.num_warmup_steps}: expected an integer, or a ratio in (0, 1).")
        steps = self.checkpointing_steps
        if steps not in (None, "epoch") and not (steps.isdecimal() and int(steps) > 0):
            raise ValueError(f"checkpointing_steps={steps!r}: expected an integer in [1, inf) or 'epoch'.")

    def saves_at(self, step: int, steps_an_epoch: int) -> bool:
        """Return whether a checkpoint is saved after update `step`."""
        every = {None: 0, "epoch": steps_an_epoch}.get(self.checkpointing_steps)
        every = int(self.checkpointing_steps) if every is None else every
        return every > 0 and step % every == 0


def batches(accelerator: Accelerator, loader: Any, epoch: int, skipped: int) -> Iterator[Any]:
    """Yield micro-batches of one epoch after the other, without the first `skipped` ones of the first epoch."""
    while True:
        loader.set_epoch(epoch)
        yield from accelerator.skip_first_batches(loader, skipped) if skipped else loader
        epoch, skipped = epoch + 1, 0


def evaluate(accelerator: Accelerator, model: Any, loader: Any) -> dict[str, float]:
    """Return metrics of the whole validation split, without the duplicates that fill the last batch."""
    model.eval()
    predictions, references = [], []
    for batch in loader:
        with torch.no_grad():
            logits = model(**batch).logits
        logits, labels = accelerator.gather_for_metrics((logits.float(), batch["labels"]))
        predictions.append(logits.cpu())
        references.append(labels.cpu())
    model.train()
    metrics = classification_metrics(torch.cat(predictions).numpy(), torch.cat(references).numpy())
    return {f"eval_{key}": value for key, value in metrics.items()}


def train(
    accelerator: Accelerator,
    args: LoopArguments,
    state: TrainerState,
    steps_an_epoch: int,
    progress: tqdm,
    stop: StopOnSignalCallback | None,
    model: Any,
    optimizer: Any,
    loader: Any,
    eval_loader: Any,
    scheduler: Any,
) -> None:
    """Update the model from `state.global_step` to `state.max_steps`, or until a signal asks to stop."""
    recorder = None
    if args.grad_norm_steps:
        path = Path(args.output_dir) / GRADIENT_NORMS_FILE if accelerator.is_main_process else None
        recorder = GradientNormRecorder(path, args.grad_norm_group_by, args.grad_norm_steps)
        recorder.resume(state.global_step)
    epoch, within = divmod(state.global_step, steps_an_epoch)
    micro_batches = batches(accelerator, loader, epoch, within * args.gradient_accumulation_steps)
    losses = []
    model.train()
    while state.global_step < state.max_steps:
        batch = next(micro_batches)  # before `accumulate`, which asks whether it is the last of an epoch
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            losses.append(loss.detach())
            with record_gradient_norms(recorder, accelerator, model, state.global_step + 1):
                accelerator.backward(loss)
            if accelerator.sync_gradients and args.max_grad_norm:
                if recorder is None:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                else:  # the same, with the norms that have just been recorded
                    recorder.clip_(model, args.max_grad_norm, accelerator)
            learning_rate = scheduler.get_last_lr()[0]
            optimizer.step()
            if accelerator.sync_gradients and recorder is not None:
                recorder.log(learning_rate=effective_learning_rates(optimizer))
            scheduler.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        state.global_step += 1
        state.epoch = state.global_step / steps_an_epoch
        evaluates = state.global_step % steps_an_epoch == 0 or state.global_step == state.max_steps
        stops = stop is not None and state.global_step < state.max_steps and stop.should_stop(accelerator.device)
        saves = stops or args.saves_at(state.global_step, steps_an_epoch)
        if evaluates or saves or state.global_step % args.logging_steps == 0:
            loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            losses.clear()
            entry = {"loss": loss, "learning_rate": learning_rate}
            if "scheduled_lr" in optimizer.param_groups[0]:  # the optimizer has a built-in warmup
                entry["scheduled_lr"] = optimizer.param_groups[0]["scheduled_lr"]
            log(accelerator, state, entry, recorder)
            progress.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.3g}")
        if evaluates:
            log(accelerator, state, evaluate(accelerator, model, eval_loader))
        if saves:
            save_checkpoint(accelerator, args.output_dir, state, args.checkpoints_total_limit)
        progress.update()
        if stops:
            return


def log(
    accelerator: Accelerator, state: TrainerState, entry: dict[str, float], recorder: GradientNormRecorder | None = None
) -> None:
    """Log an entry to the state, as the Trainer does, and to the trackers with the latest gradient norms."""
    state.log_history.append({**entry, "epoch": state.epoch, "step": state.global_step})
    if recorder is not None:
        recorder.flush()
        entry = entry | {key: value for key, value in recorder.latest.items() if key.startswith("grad_norm")}
    accelerator.log(entry, step=state.global_step)


def main() -> None:
    with exit_on_user_error(RESUME_HINT):
        model_args, data_args, args = parse_arguments(HfArgumentParser((ModelArguments, DataArguments, LoopArguments)))
        kwargs = read_mapping("lr_scheduler_kwargs", args.lr_scheduler_kwargs, '{"d_model": 768}')
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=args.report_to if args.with_tracking else None,
            project_dir=args.output_dir,
            dataloader_config=DataLoaderConfiguration(split_batches=args.split_batches, use_seedable_sampler=True),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=args.process_group_timeout))],
        )
        check_process_count(accelerator.num_processes)
        check_same_arguments(vars(args))
        check_accelerator(accelerator, args.optim)
        if not accelerator.is_local_main_process:
            disable_progress_bar()
        set_seed(args.seed)
        with accelerator.main_process_first():
            data, columns = load_data(data_args, ["train", "validation"])
            accelerator.print(describe_data(data, columns))
            tokenizer = load_tokenizer(model_args)
            data = tokenize(data, columns, tokenizer, data_args)
        model = build_model(model_args, tokenizer, data, data_args.max_seq_length)
        multiple = 8 if accelerator.mixed_precision == "fp16" else None
        pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)
        collate = default_data_collator if data_args.pad_to_max_length else pad
        # Separate generators: loaders that draw from torch's global one would change the dropout of a resumed run.
        train_loader = DataLoader(
            data["train"], args.per_device_train_batch_size, True, collate_fn=collate, generator=torch.Generator()
        )
        eval_loader = DataLoader(
            data["validation"], args.per_device_eval_batch_size, collate_fn=collate, generator=torch.Generator()
        )
        loaders = 1 if args.split_batches else accelerator.num_processes
        steps_an_epoch = math.ceil(math.ceil(len(train_loader) / loaders) / args.gradient_accumulation_steps)
        max_steps = args.max_train_steps or args.num_train_epochs * steps_an_epoch
        num_warmup_steps = int(args.num_warmup_steps) or updates_of_share(args.num_warmup_steps, max_steps)
        optimizer = create_optimizer(
            model,
            args.optim,
            args.learning_rate,
            args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            optim_args=args.optim_args,
            learning_rate_mapping=read_mapping("learning_rate_mapping", args.learning_rate_mapping, '{"cls": 1e-5}'),
            layerwise_lr_decay=args.layerwise_lr_decay,
        )
        scheduler = create_scheduler(
            optimizer, args.lr_scheduler_type, num_warmup_steps, max_steps, kwargs, args.warmup_type
        )
        prepared = accelerator.prepare(model, optimizer, train_loader, eval_loader, scheduler)
        model, *_, eval_loader, _ = prepared
        with lock_output_dir(args.output_dir):
            state = load_checkpoint(accelerator, args.resume_from_checkpoint, args.output_dir, model, max_steps)
            state.max_steps = max_steps
            stop = StopOnSignalCallback() if args.stop_on_signal else None
            if state.global_step == max_steps:
                accelerator.print(f"All {max_steps} updates are made: nothing is left to train.")
            else:
                if args.with_tracking:
                    settings = {**vars(model_args), **vars(data_args), **vars(args)}
                    accelerator.init_trackers("finetune_bert_no_trainer", settings)
                if accelerator.is_main_process:  # for reports and model cards
                    config = accelerator.unwrap_model(model).config.to_dict()
                    resumed, processes = state.global_step > 0, accelerator.num_processes
                    write_run_settings(
                        args.output_dir, vars(args), config, max_steps, num_warmup_steps, resumed, processes
                    )
                hidden = not accelerator.is_local_main_process
                with (
                    tqdm(total=max_steps, initial=state.global_step, disable=hidden) as progress,
                    stop or nullcontext(),
                ):
                    train(accelerator, args, state, steps_an_epoch, progress, stop, *prepared)
            received = stop and stop.received
            if accelerator.is_main_process:
                state.save_to_json(str(Path(args.output_dir) / TRAINER_STATE_FILE))
                write_run_end(args.output_dir, state.global_step, "interrupted" if received else "finished", received)
            if received:
                accelerator.print(f"Stopped on {received} at update {state.global_step} of {max_steps}.")
                accelerator.end_training()
                sys.exit(stop.exit_code)

    accelerator.wait_for_everyone()
    weights = accelerator.get_state_dict(model)  # a collective call if the model is sharded
    if accelerator.is_main_process:
        folder = Path(args.output_dir)
        accelerator.unwrap_model(model).save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        metrics = {key: value for key, value in state.log_history[-1].items() if key.startswith("eval_")}
        (folder / "all_results.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(metrics))
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
