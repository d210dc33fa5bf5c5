"""Short runs of a Trainer and of an Accelerate loop, which the section `kills` and the section `damages` start.

Each run starts in a process of its own, forked from a server that has imported the libraries.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, PrinterCallback

from hf_warmup import (
    GradientNormRecorder,
    StopOnSignalCallback,
    WarmupTrainer,
    WarmupTrainingArguments,
    create_optimizer,
    create_scheduler,
    get_scheduler,
    record_gradient_norms,
)
from hf_warmup.accelerate_utils import load_checkpoint, lock_output_dir, save_checkpoint
from hf_warmup.norms import GRADIENT_NORMS_FILE
from hf_warmup.optim import effective_learning_rates


RESULT_FILE, WEIGHTS_FILE = "result.json", "model.safetensors"
BATCH, LENGTH = 16, 8


@dataclass(frozen=True)
class Plan:
    """How long a run trains, how often it saves, how many checkpoints it keeps, and how it learns."""

    updates: int
    save_steps: int
    layers: int = 6
    learning_rate: float = 1e-3
    guard: str = "warn"
    limit: int | None = 2
    seed: int = 0
    dropout: float = 0.1


def model_of(plan: Plan) -> BertForMaskedLM:
    """Return a small Post-LN BERT with dropout. At a learning rate of 0.02 it fails without a warmup."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": plan.layers, "num_attention_heads": 2}
    torch.manual_seed(plan.seed)
    dropout = {"hidden_dropout_prob": plan.dropout, "attention_probs_dropout_prob": plan.dropout}
    config = BertConfig(vocab_size=32, max_position_embeddings=16, initializer_range=0.25, **sizes, **dropout)
    return BertForMaskedLM(config)


def sequences(updates: int) -> torch.Tensor:
    """Return the tokens of each update. The labels are the sequences reversed."""
    return torch.randint(5, 32, (updates, BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def train(folder: Path, plan: Plan, resume: str = "auto") -> int:
    """Train with a [`WarmupTrainer`]; return its exit code, not 0 if a signal stopped it."""
    args = WarmupTrainingArguments(
        str(folder),
        max_steps=plan.updates,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="linear",
        adam_beta2=0.98,
        guard=plan.guard,
        per_device_train_batch_size=BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        save_steps=plan.save_steps,
        save_total_limit=plan.limit,
        logging_steps=1,
        seed=plan.seed,
        stop_on_signal=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": x, "labels": x.flip(0)} for x in sequences(plan.updates).flatten(0, 1)]
    trainer = WarmupTrainer(model_of(plan), args, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    joined_file(folder).touch()
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero() and not trainer.exit_code:
        write_result(folder, trainer.model, trainer.state.log_history)
    return trainer.exit_code


def recipe(page: str, name: str) -> Any:
    """Return what a block in `docs/` defines, so that the recipe that people copy is the one that runs here."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    block = next(each for each in re.findall(r"^```py.*?\n(.*?)^```", text, re.M | re.S) if f"class {name}" in each)
    names: dict[str, Any] = {}
    exec(compile(block, page, "exec"), names)
    return names[name]


def batches(plan: Plan, world: int, loader: Any = DataLoader) -> Any:
    """Return the part of this process of the batches of each update, in order: Lightning would shuffle them."""
    data = [{"input_ids": x, "labels": x.flip(0)} for x in sequences(plan.updates).flatten(0, 1)]
    return loader(data[int(os.environ.get("RANK", "0")) :: world], BATCH // world, generator=torch.Generator())


def latest(folder: Path) -> Path | None:
    """Return the checkpoint of the highest update."""
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=None)


def run_fabric(folder: Path, plan: Plan, world: int) -> int:
    """Train with a loop of Lightning's Fabric; return its exit code."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto")
    fabric.launch()
    model = model_of(plan)
    optimizer = create_optimizer(model, "radam", plan.learning_rate)
    scheduler = get_scheduler("cosine", optimizer, 4, plan.updates, warmup_type="linear")
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(batches(plan, world), use_distributed_sampler=False)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "step": 0}
    if saved := latest(folder):
        fabric.load(saved, state)
    recorder = GradientNormRecorder(folder / GRADIENT_NORMS_FILE if fabric.is_global_zero else None)
    recorder.resume(state["step"])
    with StopOnSignalCallback() as stop:
        for batch in itertools.islice(loader, state["step"], None):
            loss = model(**batch).loss
            fabric.backward(loss)
            state["step"] += 1
            recorder.record(model.named_parameters(), state["step"])
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            recorder.log(loss=loss, learning_rate=effective_learning_rates(optimizer.optimizer))
            scheduler.step()
            optimizer.zero_grad()
            stopping = stop.should_stop(fabric.device)
            if stopping or state["step"] % plan.save_steps == 0:
                recorder.flush()
                fabric.save(folder / f".saving-{state['step']}", state)
                if fabric.is_global_zero:
                    (folder / f".saving-{state['step']}").rename(folder / f"checkpoint-{state['step']}")
                fabric.barrier()
            if stopping:
                return stop.exit_code
    if fabric.is_global_zero:
        write_weights(folder, model.module)
    return 0


def run_lightning(folder: Path, plan: Plan, world: int) -> int:
    """Train with Lightning's Trainer; return its exit code."""
    import lightning.pytorch as L

    from hf_warmup.lightning import GradientNormCallback

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of(plan)

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            return self.model(**batch).loss  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            optimizer = create_optimizer(self.model, "radam", plan.learning_rate)
            scheduler = get_scheduler("cosine", optimizer, 4, plan.updates, warmup_type="linear")
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    checkpoints = L.callbacks.ModelCheckpoint(
        folder, "checkpoint-{step}", every_n_train_steps=plan.save_steps, save_top_k=-1,
        auto_insert_metric_name=False, save_on_exception=True,
    )  # fmt: skip
    checkpoints.FILE_EXTENSION = ""
    trainer = L.Trainer(
        max_steps=plan.updates,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        logger=False,
        default_root_dir=folder,
        gradient_clip_val=1.0,
        callbacks=[GradientNormCallback(), checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = Module()
    loader = batches(plan, world, recipe("how-to/lightning.md", "ResumableLoader"))
    trainer.fit(module, loader, ckpt_path=latest(folder))
    if trainer.is_global_zero:
        write_weights(folder, module.model)
    return 0


class Averages:
    """An object that a loop registers for checkpointing."""

    def __init__(self) -> None:
        self.loss = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss = state["loss"]


def loop(folder: Path, plan: Plan, resume: str = "auto") -> None:
    """Train with a hand-written Accelerate loop."""
    accelerator, averages = Accelerator(cpu=True), Averages()
    torch.manual_seed(plan.seed)
    model = model_of(plan)
    optimizer = create_optimizer(model, "radam", plan.learning_rate)
    scheduler = create_scheduler(optimizer, "cosine", 4, plan.updates, warmup_type="linear")
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    accelerator.register_for_checkpointing(averages)
    with lock_output_dir(folder):
        state = load_checkpoint(accelerator, resume, folder, model, plan.updates)
        recorder = GradientNormRecorder(folder / GRADIENT_NORMS_FILE)
        recorder.resume(state.global_step)
        for x in sequences(plan.updates)[state.global_step :]:
            loss = model(input_ids=x, labels=x.flip(1)).loss
            with record_gradient_norms(recorder, accelerator, model, state.global_step + 1):
                accelerator.backward(loss)
            recorder.clip_(model, 1.0, accelerator)
            optimizer.step()
            averages.loss = 0.9 * averages.loss + 0.1 * loss.item()
            recorder.log(loss=averages.loss)
            recorder.flush()
            scheduler.step()
            optimizer.zero_grad()
            state.global_step += 1
            state.log_history.append({"step": state.global_step, "loss": averages.loss})
            if state.global_step % plan.save_steps == 0:
                save_checkpoint(accelerator, folder, state, plan.limit)
    write_result(folder, model, state.log_history)


def write_result(folder: Path, model: Any, log: Sequence[dict[str, Any]]) -> None:
    """Write what has to be the same for two runs to be equal bit for bit: weights, curves and recording."""
    weights = b"".join(value.numpy().tobytes() for _, value in sorted(model.state_dict().items()))
    curve = [(entry["step"], entry["loss"], entry.get("learning_rate")) for entry in log if "loss" in entry]
    digests = [sha256(each).hexdigest() for each in (weights, (folder / GRADIENT_NORMS_FILE).read_bytes())]
    result = {
        "weights": digests[0],
        "recording": digests[1],
        "curve": curve,
        "rewinds": sum("rewound_to" in entry for entry in log),
    }
    (folder / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    write_weights(folder, model)


def write_weights(folder: Path, model: Any) -> None:
    """Write the weights, those that are tied once each."""
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / WEIGHTS_FILE)


def joined_file(folder: Path) -> Path:
    """Return the file that a run makes when all of its processes have found each other."""
    return folder.with_name(f"{folder.name}.joined")


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the result of a run, or `None` if it has not ended."""
    with suppress(FileNotFoundError):
        result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        return result
    return None


# Processes


def _main(function: Callable[..., Any], arguments: Sequence[Any], log: str, variables: dict[str, str]) -> None:
    """Call `function` with its output in a file, and leave without the interpreter's end, where gloo may abort."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    torch.set_num_threads(1)
    gc.freeze()  # the libraries' objects: collecting them would copy the server's memory
    code = 1
    try:
        code = function(*arguments) or 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Run:
    """A run in `world` processes. Its output is appended to `<folder>.log`."""

    def __init__(self, function: Callable[..., Any], folder: Path, plan: Plan, *more: Any, world: int = 1):
        variables: list[dict[str, str]] = [{}]
        if world > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        self.log = folder.parent / f"{folder.name}.log"
        folder.parent.mkdir(parents=True, exist_ok=True)
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imports torch and transformers once
        self.processes = [
            context.Process(target=_main, args=(function, (folder, plan, *more), str(self.log), each))
            for each in variables
        ]
        for process in self.processes:
            process.start()

    @property
    def output(self) -> str:
        """What the run, and runs before it in the same folder, have written."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait(self, seconds: float) -> bool:
        """Wait for all processes to end, at most for `seconds`; return whether they have."""
        deadline = monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - monotonic()))
        return all(process.exitcode is not None for process in self.processes)

    def kill(self, rank: int | None = None) -> None:
        """Kill one process, or all of them, with SIGKILL."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            process.kill()
            process.join()

    @property
    def exit_codes(self) -> list[int | None]:
        """The exit codes; negative for a signal, `None` for a process that runs."""
        return [process.exitcode for process in self.processes]
