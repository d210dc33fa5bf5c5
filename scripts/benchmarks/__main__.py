"""What our parts cost, measured against torch's, transformers' and others' in one process.

    python -m scripts.benchmarks optimizers                 # one step() on BERT-base shapes and on 2,000 small tensors
    python -m scripts.benchmarks gradient-norms             # a training update with and without recording
    python -m scripts.benchmarks trainer                    # updates per second, and seconds of import
    python -m scripts.benchmarks optimizers --quick         # seconds instead of minutes, for a look

Candidates take turns in random order; a table gives medians, bests and ratios to the first. Machines are noisy: the
ratios are what to read. `results.json` and a bar chart go to `--output_dir`. Other libraries take part where they are
installed: `pip install ".[bench]"`, and timm, which brings torchvision.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    HfArgumentParser,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_warmup import WarmupTrainer, WarmupTrainingArguments
from hf_warmup.cli import check_minimums, exit_on_user_error, parse_arguments, words_first
from hf_warmup.model_card import environment

from .contenders import DEVICE, GRADIENT_NORMS, OPTIMIZERS, OURS, takes_part
from .measure import Row, interleave, peak_extra_megabytes, print_table, rows_of, write_chart


DEMO_BERT = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 16,
}
BYTES_PER_PARAMETER = 28  # fp32: an Adam step reads p, g, m, v and writes p, m, v


@dataclass
class BenchmarkArguments:
    """What to measure."""

    what: str = field(metadata={"help": "optimizers, gradient-norms or trainer."})
    rounds: int = field(default=20, metadata={"help": "Times that each candidate is measured."})
    threads: int = field(default=0, metadata={"help": "torch's threads; 0 leaves its default."})
    quick: bool = field(default=False, metadata={"help": "Small sizes and 1 round: the structure, not the numbers."})
    only: list[str] = field(default_factory=list, metadata={"help": "Optimizers beside the reference; all by default."})
    output_dir: str = field(default="runs/benchmark", metadata={"help": "Where results.json and the chart go."})


def limits(count: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """Passes over `count` parameters in one piece, and the bytes a parameter that each moves: what memory allows."""
    whole, values = nn.Parameter(torch.rand(count, device=DEVICE)), torch.rand(count, device=DEVICE)
    whole.grad = torch.rand_like(whole)
    return {
        "(limit: AdamW fused, one tensor)": (torch.optim.AdamW([whole], fused=True).step, BYTES_PER_PARAMETER),
        "(limit: multiplied in place)": (lambda: values.mul_(1.0), 8),
    }


def optimizers(args: BenchmarkArguments) -> dict[str, list[Row]]:
    """Seconds, peak extra memory, and share of the reachable memory bandwidth of one `step()`."""
    with torch.device("meta"):
        bert = BertModel(BertConfig(**(DEMO_BERT if args.quick else {})))
    cases = {
        "BERT shapes": [tuple(p.shape) for p in bert.parameters()],
        "small tensors": [(64, 64)] * (50 if args.quick else 2000),
    }
    one = [nn.Parameter(torch.ones(1, device=DEVICE))]
    for name in args.only:
        if name not in OPTIMIZERS:
            raise ValueError(f"only={name!r}: expected one of {', '.join(OPTIMIZERS)}.")
    wanted = {next(iter(OPTIMIZERS)), *(args.only or OPTIMIZERS)}
    makers = {name: make for name, make in OPTIMIZERS.items() if name in wanted and takes_part(name, make, one)}
    tables = {}
    for case, shapes in cases.items():
        parameters = [nn.Parameter(torch.randn(shape, device=DEVICE)) for shape in shapes]
        for p in parameters:
            p.grad = torch.randn_like(p)
        count = sum(p.numel() for p in parameters)
        steps = {name: make(parameters).step for name, make in makers.items()}
        for step in steps.values():
            for _ in range(6):  # state made, RAdam past its first updates
                step()
        memory = {name: peak_extra_megabytes(step) for name, step in steps.items()}
        passes = limits(count)
        seconds = interleave(steps | {name: run for name, (run, _) in passes.items()}, args.rounds, case)
        bandwidth = max(moved * count / min(seconds[name]) for name, (_, moved) in passes.items())
        reached = {name: BYTES_PER_PARAMETER * count / median(seconds[name]) / bandwidth for name in steps}
        title = f"{case}: {len(shapes)} tensors, {count / 1e6:.1f} M; {bandwidth / 1e9:.0f} GB/s"
        tables[title] = rows_of(seconds, extra_mb=memory, of_bandwidth=reached)
    return tables


def update(
    model: nn.Module, tokens: torch.Tensor, optimizer: torch.optim.Optimizer, measure: Callable[[nn.Module], Any] | None
) -> None:
    """One training update; `measure` sees the gradients."""
    model(input_ids=tokens, labels=tokens).loss.backward()
    if measure is not None:
        measure(model)
    optimizer.step()
    optimizer.zero_grad()


def gradient_norms(args: BenchmarkArguments) -> dict[str, list[Row]]:
    """Seconds of a whole training update with and without recording it, and of the recording alone."""
    cases = {"demo BERT, 32 x 16": (BertConfig(**DEMO_BERT), 32, 16)}
    if not args.quick:
        cases["BERT-base, 8 x 128"] = (BertConfig(), 8, 128)
    measures = {name: measure for name, measure in GRADIENT_NORMS.items() if takes_part(name, measure, nn.Linear(1, 1))}
    tables = {}
    for case, (config, batch, length) in cases.items():
        model = BertForMaskedLM(config).to(DEVICE)
        tokens = torch.randint(5, config.vocab_size, (batch, length), device=DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        updates = {
            name: partial(update, model, tokens, optimizer, measure)
            for name, measure in {"no recording": None, **measures}.items()
        }
        rows = tables[case] = rows_of(interleave(updates, args.rounds, case))
        # Differences of updates drown in their noise: the recording by itself, as a share of the update.
        model(input_ids=tokens, labels=tokens).loss.backward()
        alone = {f"{name}, alone": partial(measure, model) for name, measure in measures.items()}
        for row in rows_of(interleave(alone, args.rounds, f"{case}, alone")):
            shares = {
                "ratio": row["median_ms"] / rows[0]["median_ms"],
                "ratio_of_bests": row["best_ms"] / rows[0]["best_ms"],
            }
            rows.append(row | shares)
    return tables


class Stopwatch(TrainerCallback):
    """Seconds from the first update's begin to the last one's end: neither models nor data are made in them."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def seconds_of_training(make: Callable[[], Trainer]) -> float:
    trainer, stopwatch = make(), Stopwatch()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stopwatch)
    trainer.train()
    return stopwatch.seconds


def trainer(args: BenchmarkArguments) -> dict[str, list[Row]]:
    """Updates per second of the same run in both Trainers, and seconds of import."""
    steps = 5 if args.quick else 60
    config = BertConfig(**DEMO_BERT)
    data = [{"input_ids": x, "labels": x} for x in torch.randint(5, 32, (32 * steps, 16))]
    common = {
        "max_steps": steps,
        "per_device_train_batch_size": 32,
        "warmup_steps": steps // 5,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "use_cpu": DEVICE.type == "cpu",
        "dataloader_pin_memory": DEVICE.type == "cuda",
    }
    own = {"optim": "radam", "lr_scheduler_type": "noam", "warmup_type": "linear"}
    with TemporaryDirectory() as folder:
        plain = TrainingArguments(folder, optim="adamw_torch_fused", lr_scheduler_type="linear", **common)
        ours, silent = (WarmupTrainingArguments(folder, **own, **common, grad_norm_steps=n) for n in (1, 0))
        candidates = {
            "Trainer": lambda: Trainer(BertForMaskedLM(config), plain, train_dataset=data),
            "WarmupTrainer, RAdam, recording": lambda: WarmupTrainer(BertForMaskedLM(config), ours, train_dataset=data),
            "WarmupTrainer, RAdam": lambda: WarmupTrainer(BertForMaskedLM(config), silent, train_dataset=data),
        }
        runs = interleave(candidates, args.rounds, f"{steps} updates of the demo's BERT", seconds_of_training)
    imports = {
        name: partial(subprocess.run, [sys.executable, "-c", f"import {name}"], check=True)
        for name in ("torch", "hf_warmup")
    }
    loads = interleave(imports, args.rounds, "import")
    return {
        f"{steps} updates of the demo's BERT": rows_of(
            runs, updates_per_second={name: steps / median(seconds) for name, seconds in runs.items()}
        ),
        "import, in a new process": rows_of(
            loads, ms_beyond_torch={"hf_warmup": 1e3 * (median(loads["hf_warmup"]) - median(loads["torch"]))}
        ),
    }


def main() -> None:
    benchmarks = {"optimizers": optimizers, "gradient-norms": gradient_norms, "trainer": trainer}
    with exit_on_user_error():
        (args,) = parse_arguments(HfArgumentParser(BenchmarkArguments), words_first("what"))
        what = args.what.replace("_", "-")
        if what not in benchmarks:
            raise ValueError(f"{args.what!r} is no benchmark: expected {', '.join(benchmarks)}.")
        check_minimums(args, rounds=1, threads=0)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.rounds = 1
    tables = benchmarks[what](args)
    folder = Path(args.output_dir) / what
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        **environment(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    (folder / "results.json").write_text(json.dumps({"environment": machine, "tables": tables}, indent=1) + "\n")
    write_chart(tables, folder / "ratios.png", OURS)
    for title, rows in tables.items():
        print_table(title, rows)
    print(f"\nWrote {folder / 'results.json'} and {folder / 'ratios.png'}")


if __name__ == "__main__":
    main()
