"""The sections of the benchmarks. Each returns title -> table."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_warmup import GradientNormRecorder, WarmupTrainer, WarmupTrainingArguments
from hf_warmup.checkpoints import find_corruption
from hf_warmup.guard.callback import Snapshot
from hf_warmup.model_card import environment
from hf_warmup.optim.updates import update_norms

from .contenders import DEVICE, GRADIENT_NORMS, OPTIMIZERS, REFERENCE, is_available
from .engines import ENGINES, engines
from .measure import Finished, Table, interleave, peak_extra_megabytes, table_of
from .reliability import DAMAGED, damages, kills


DEMO_BERT = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 16,
}
BYTES_PER_PARAMETER = 28  # in fp32 an Adam step reads p, g, m, v and writes p, m, v
Tables = dict[str, Table]


@dataclass
class BenchmarkArguments:
    """What to measure."""

    what: str = field(metadata={"help": "The section, or all."})
    json: str = field(default="runs/benchmarks.json", metadata={"help": "File for the results."})
    rounds: int = field(default=0, metadata={"help": "Rounds per section; 0 for the section's own number."})
    threads: int = field(default=0, metadata={"help": "Threads of torch; 0 for its default."})
    only: list[str] = field(default_factory=list, metadata={"help": "Optimizers besides the reference, or engines."})
    quick: bool = field(default=False, metadata={"help": "Small sizes and one round: the structure, not the numbers."})

    def rounds_or(self, number: int) -> int:
        """Return `--rounds`, or the section's own `number`."""
        return 1 if self.quick else self.rounds or number


def bandwidth_limits(count: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return passes over `count` parameters in one tensor, with the bytes per parameter that each of them moves."""
    whole, values = nn.Parameter(torch.rand(count, device=DEVICE)), torch.rand(count, device=DEVICE)
    whole.grad = torch.rand_like(whole)
    return {
        "(limit: AdamW fused, one tensor)": (torch.optim.AdamW([whole], fused=True).step, BYTES_PER_PARAMETER),
        "(limit: multiplication in place)": (lambda: values.mul_(1.0), 8),
    }


def optimizers(args: BenchmarkArguments) -> Tables:
    """Measure time, peak extra memory and share of the reachable memory bandwidth of one `step()`."""
    if unknown := set(args.only) - OPTIMIZERS.keys():
        raise ValueError(f"only={min(unknown)!r}: expected some of {', '.join(OPTIMIZERS)}.")
    with torch.device("meta"):
        bert = BertModel(BertConfig(**(DEMO_BERT if args.quick else {})))
    shapes_of = {
        "BERT-base shapes": [tuple(p.shape) for p in bert.parameters()],
        "small tensors": [(64, 64)] * (50 if args.quick else 2000),
    }
    one = [nn.Parameter(torch.ones(1, device=DEVICE))]
    wanted = {REFERENCE, *(args.only or OPTIMIZERS)}
    makers = {name: make for name, make in OPTIMIZERS.items() if name in wanted and is_available(name, make, one)}
    tables = {}
    for case, shapes in shapes_of.items():
        parameters = [nn.Parameter(torch.randn(shape, device=DEVICE)) for shape in shapes]
        for p in parameters:
            p.grad = torch.randn_like(p)
        count = sum(p.numel() for p in parameters)
        steps = {name: make(parameters).step for name, make in makers.items()}
        for step in steps.values():
            for _ in range(6):  # creates the state; RAdam makes its first real update at 6
                step()
        memory = {name: peak_extra_megabytes(step) for name, step in steps.items()}
        limits = bandwidth_limits(count)
        calls = steps | {name: call for name, (call, _) in limits.items()}
        seconds = interleave(calls, args.rounds_or(20), case)
        bandwidth = max(moved * count / min(seconds[name]) for name, (_, moved) in limits.items())
        reached = {name: BYTES_PER_PARAMETER * count / median(seconds[name]) / bandwidth for name in steps}
        note = f"one step, {len(shapes)} tensors, {count / 1e6:.1f} M parameters, {bandwidth / 1e9:.0f} GB/s"
        tables[case] = table_of(note, seconds, extra_mb=memory, of_bandwidth=reached)
    return tables


def gradient_norms(args: BenchmarkArguments) -> Tables:
    """Measure a training update, and recording its gradient norms by itself."""
    cases = {"demo BERT": (BertConfig(**DEMO_BERT), 32, 16)}
    if not args.quick:
        cases["BERT-base"] = (BertConfig(), 8, 128)
    measures = {name: each for name, each in GRADIENT_NORMS.items() if is_available(name, each, nn.Linear(1, 1))}
    tables = {}
    for case, (config, batch, length) in cases.items():
        model = BertForMaskedLM(config).to(DEVICE)
        tokens = torch.randint(5, config.vocab_size, (batch, length), device=DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def update(model: nn.Module = model, tokens: Any = tokens, optimizer: Any = optimizer) -> None:
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        updates = interleave({"a training update": update}, args.rounds_or(5), f"{case}, updates")
        model(input_ids=tokens, labels=tokens).loss.backward()
        alone = {name: partial(measure, model) for name, measure in measures.items()}
        seconds = updates | interleave(alone, args.rounds_or(20), f"{case}, recording")
        tables[case] = table_of(f"norms of one update alone, batch of {batch} x {length} tokens", seconds)
    return tables


def guard(args: BenchmarkArguments) -> Tables:
    """Measure what a rewind needs, a snapshot of BERT-base with AdamW, and what the norms of an update cost."""
    model = BertForMaskedLM(BertConfig(**(DEMO_BERT if args.quick else {}))).to(DEVICE)
    tokens = torch.randint(5, 32, (8, 16 if args.quick else 64), device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def update() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    update()
    snapshot = Snapshot.take(0, model, optimizer)
    tensors = [*chain(*snapshot.params), *(each for state in chain(*snapshot.state) for each in state.values())]
    megabytes = sum(tensor.nbytes for tensor in [*tensors, *snapshot.buffers.values()]) / 1e6
    calls = {
        "a training update": update,
        "take a snapshot": partial(Snapshot.take, 0, model, optimizer),
        "restore it": partial(snapshot.restore, model, optimizer),
        "norms of the updates": partial(update_norms, optimizer),
    }
    seconds = interleave(calls, args.rounds_or(8), "guard")
    note = f"batch of {' x '.join(map(str, tokens.shape))} tokens, fused AdamW"
    return {"BERT-base": table_of(note, seconds, extra_mb={"take a snapshot": megabytes})}


class Stopwatch(TrainerCallback):
    """A callback that measures a run from its first update to its last."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def seconds_of_training(make: Callable[[], Trainer]) -> float:
    """Return the seconds of one run; building the trainer does not count."""
    trainer, stopwatch = make(), Stopwatch()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stopwatch)
    trainer.train()
    return stopwatch.seconds


def trainer(args: BenchmarkArguments) -> Tables:
    """Measure runs of `Trainer` and of `WarmupTrainer` with and without recording, with the same optimizer."""
    candidates: dict[str, dict[str, Any] | None] = {
        "Trainer": None,
        "WarmupTrainer": {"grad_norm_steps": 0, "guard": "off"},
        "WarmupTrainer, recording": {"grad_norm_steps": 1, "guard": "off"},
        "WarmupTrainer, recording and guard": {"grad_norm_steps": 1, "guard": "warn"},
    }
    tables = {"demo BERT": compare_trainers(args, candidates, DEMO_BERT, (32, 16), 5 if args.quick else 60, 16)}
    if not args.quick:
        candidates.pop("WarmupTrainer")
        tables["BERT-base"] = compare_trainers(args, candidates, {}, (8, 64), 4, 8)
    return tables


def compare_trainers(
    args: BenchmarkArguments,
    candidates: dict[str, dict[str, Any] | None],
    config: dict[str, int],
    shape: Sequence[int],
    steps: int,
    rounds: int,
) -> Table:
    """Measure runs of `steps` updates on one BERT; `None` among the candidates is the plain `Trainer`."""
    batch, length = shape
    model = BertForMaskedLM(BertConfig(**config))
    data = [{"input_ids": x, "labels": x} for x in torch.randint(5, 32, (batch * steps, length))]
    common = {
        "max_steps": steps,
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "linear",
        "warmup_steps": steps // 4,
        "per_device_train_batch_size": batch,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "use_cpu": DEVICE.type == "cpu",
        "dataloader_pin_memory": DEVICE.type == "cuda",
    }

    def make(extra: dict[str, Any] | None, folder: str) -> Trainer:
        if extra is None:
            return Trainer(model, TrainingArguments(folder, **common), train_dataset=data)
        return WarmupTrainer(model, WarmupTrainingArguments(folder, **common, **extra), train_dataset=data)

    with TemporaryDirectory() as folder:
        calls = {name: partial(make, extra, f"{folder}/{i}") for i, (name, extra) in enumerate(candidates.items())}
        seconds = interleave(calls, args.rounds_or(rounds), f"{steps} updates", seconds_of_training)
    rates = {name: steps / median(each) for name, each in seconds.items()}
    note = f"runs of {steps} updates, batch of {batch} x {length} tokens, fused AdamW"
    return table_of(note, seconds, updates_per_second=rates)


def imports(args: BenchmarkArguments) -> Tables:
    """Measure imports in new processes."""

    def python(code: str) -> Callable[[], Any]:
        return partial(subprocess.run, [sys.executable, "-c", code], check=True)

    codes = {
        "import torch": "import torch",
        "import torch, hf_warmup": "import torch, hf_warmup",
        "import hf_warmup.report.run": "import hf_warmup.report.run",
    }
    seconds = interleave({name: python(code) for name, code in codes.items()}, args.rounds_or(8), "imports")
    difference = 1e3 * (median(seconds["import torch, hf_warmup"]) - median(seconds["import torch"]))
    note = "in new processes"
    return {"imports": table_of(note, seconds, ms_beyond_torch={"import torch, hf_warmup": difference})}


def write_recording(folder: Path, updates: int, layers: int) -> float:
    """Write the recording and the log of a run; return the megabytes of the recording."""
    folder.mkdir(parents=True)
    path = folder / "gradient_norms.jsonl"
    rows = []  # repeated, as making a million of them would take longer than reading them
    for row in range(101):
        norms = {f"grad_norm/encoder.layer.{i}": 0.1 + 0.9 * ((row * (i + 7)) % 101) / 101 for i in range(layers)}
        rows.append(json.dumps({"grad_norm": 1.0, **norms})[1:])
    with path.open("w") as file:
        file.writelines(f'{{"step": {step}, {rows[step % 101]}\n' for step in range(1, updates + 1))
    log = [{"step": step, "loss": 1.0, "learning_rate": 1e-3} for step in range(10, updates + 1, 10)]
    state = {"global_step": updates, "max_steps": updates, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return path.stat().st_size / 1e6


PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
READ = "import sys; from hf_warmup.report import find_runs; find_runs(sys.argv[1:2])"
REPORT = "import sys; from hf_warmup.report.page import write_page; write_page(*sys.argv[1:])"


def large_recording(args: BenchmarkArguments) -> Tables:
    """Measure time and peak memory of reading long runs and many runs, and the size of the report's page."""
    shapes = {"1 run of 100,000 updates": (1, 100_000, 50), "1 run of 1,000,000 updates": (1, 1_000_000, 50)}
    shapes["200 runs of 2,000 updates"] = (200, 2000, 12)
    rows = []
    with TemporaryDirectory() as folder:
        for name, (count, updates, layers) in tqdm(shapes.items(), desc="large recordings", unit="case"):
            updates = updates // 100 if args.quick else updates
            runs, page = Path(folder, "runs"), Path(folder, "report.html")
            megabytes = sum(write_recording(runs / f"lr{i}", updates, layers) for i in range(count))
            row: dict[str, Any] = {"name": f"{name}, {layers} layers", "recording_mb": megabytes}
            for key, code in (("read", READ), ("report", REPORT)):
                start = time.perf_counter()
                command = [sys.executable, "-c", f"{code}; {PEAK}", str(runs), str(page)]
                peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
                row |= {f"{key}_seconds": time.perf_counter() - start, f"{key}_peak_mb": int(peak) / 1024}
            start = time.perf_counter()
            GradientNormRecorder(runs / "lr0" / "gradient_norms.jsonl").resume(updates)
            rows.append({**row, "page_mb": page.stat().st_size / 1e6, "resume_seconds": time.perf_counter() - start})
            shutil.rmtree(runs)
    return {"large recordings": {"note": "in new processes, peak of the resident memory", "rows": rows}}


def saves(args: BenchmarkArguments) -> Tables:
    """Measure saving a checkpoint with `Trainer` and with `WarmupTrainer`, and checking it."""
    model = BertForMaskedLM(BertConfig(**(DEMO_BERT if args.quick else {})))
    data = [{"input_ids": x, "labels": x} for x in torch.randint(5, 32, (4, 8))]
    common = {"max_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    with TemporaryDirectory() as folder:
        plain = Trainer(model, TrainingArguments(f"{folder}/a", **common), train_dataset=data)
        warmup = WarmupTrainer(model, WarmupTrainingArguments(f"{folder}/b", **common), train_dataset=data)
        calls: dict[str, Callable[[], Any]] = {}
        for each, name in ((plain, "Trainer"), (warmup, "WarmupTrainer")):
            each.train()
            calls[name] = partial(each._save_checkpoint, model, None)
            calls[name]()
        checkpoint = Path(folder, "b", "checkpoint-1")
        calls["check before resuming"] = partial(find_corruption, checkpoint)
        megabytes = sum(path.stat().st_size for path in checkpoint.iterdir()) / 1e6
        seconds = interleave(calls, args.rounds_or(8), "saves")
    return {"BERT-base": table_of(f"a checkpoint of {megabytes:.0f} MB", seconds)}


SECTIONS: dict[str, Callable[[BenchmarkArguments], Tables]] = {
    "imports": imports,
    "optimizers": optimizers,
    "gradient-norms": gradient_norms,
    "guard": guard,
    "large-recording": large_recording,
    "trainer": trainer,
    "saves": saves,
}


def continued(args: BenchmarkArguments, count: Callable[[Finished], Tables]) -> Tables:
    """Return the tables of a section about faults; finished parts are kept beside `--json` if it is interrupted."""
    kept = Path(args.json).with_suffix(f".{args.what}.json")
    tables = count(Finished(kept, {**environment(), "quick": args.quick}))
    kept.unlink(missing_ok=True)
    return tables


# Sections that count what happens to runs under faults, and take longer. `all` leaves them out.
FAULTS: dict[str, Callable[[BenchmarkArguments], Tables]] = {
    "kills": lambda args: continued(args, partial(kills, 4 if args.quick else 120)),
    "damages": lambda args: continued(
        args, partial(damages, *((1, ["Accelerate loop"]) if args.quick else (3, DAMAGED)))
    ),
    "engines": lambda args: {"engines": engines(args.only or ([*ENGINES][:1] if args.quick else ENGINES))},
}


def processor() -> str:
    """Return the name of the processor, which Python's `platform` does not know on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def read_results(path: Path, described: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the sections in `path` to keep.

    For `all` these are the sections about faults, and those of an incomplete file made under the same conditions.
    """
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if what != "all":
        return found
    is_complete = found.keys() >= SECTIONS.keys()
    return {
        name: section
        for name, section in found.items()
        if name in FAULTS or (not is_complete and {**section["environment"], "date": ""} == described)
    }
