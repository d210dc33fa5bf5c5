"""What our parts cost, measured against torch's and transformers' own in one process.

    python scripts/benchmark.py optimizers                 # one step() on BERT-base shapes and on 2,000 small tensors
    python scripts/benchmark.py gradient_norms             # a training update with and without recording
    python scripts/benchmark.py trainer                    # updates per second, and seconds of import
    python scripts/benchmark.py optimizers --quick         # seconds instead of minutes, for a look

Candidates take turns in random order; a table gives medians, bests and ratios to the first. Machines are noisy: the
ratios are what to read. `results.json` and a bar chart go to `--output_dir`.
"""

from __future__ import annotations

import json
import platform
import random
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
from tqdm.auto import tqdm
from transformers import BertConfig, BertForMaskedLM, HfArgumentParser, PrinterCallback, Trainer, TrainingArguments

from hf_warmup import AdamWarmup, GIAdam, GradientNormRecorder, RAdam, WarmupTrainer, WarmupTrainingArguments
from hf_warmup.cli import one_sentence_for_mistakes, parse_arguments
from hf_warmup.model_card import environment


DEMO_BERT = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 16,
}
BYTES_PER_PARAMETER = 28  # fp32: read p, g, m, v and write p, m, v


@dataclass
class BenchmarkArguments:
    """What to measure."""

    what: str = field(metadata={"help": "optimizers, gradient_norms or trainer."})
    rounds: int = field(default=20, metadata={"help": "Times that each candidate is measured."})
    threads: int = field(default=0, metadata={"help": "torch's threads; 0 leaves its default."})
    quick: bool = field(default=False, metadata={"help": "Small sizes and 2 rounds: the structure, not the numbers."})
    output_dir: str = field(default="runs/benchmark", metadata={"help": "Where results.json and the chart go."})


def interleave(candidates: dict[str, Callable[[], Any]], rounds: int, label: str) -> dict[str, list[float]]:
    """Seconds of each call, candidates in a new random order every round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in tqdm(range(rounds + 2), desc=label, unit="round"):
        for name in random.sample(list(candidates), len(candidates)):
            start = time.perf_counter()
            candidates[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def rows_of(seconds: dict[str, list[float]], **extra: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a candidate, ratios to the first."""
    reference = median(next(iter(seconds.values())))
    return [
        {
            "name": name,
            "median_ms": 1e3 * median(values),
            "best_ms": 1e3 * min(values),
            "ratio": median(values) / reference,
            **{key: column[name] for key, column in extra.items()},
        }
        for name, values in seconds.items()
    ]


def peak_extra_megabytes(call: Callable[[], Any]) -> float:
    """What `call` needs beyond what is held already: resident memory's high-water mark, or the CUDA allocator's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    call()
    return max(0, status("VmHWM") - before) / 1024


def bandwidth_of(device: torch.device) -> float:
    """GB/s of a large operation in place, bytes read and written (out of place a CPU reads what it overwrites, too)."""
    tensor = torch.ones(2**26, device=device)
    seconds = interleave({"mul_": lambda: tensor.mul_(1.0)}, 5, "bandwidth")["mul_"]
    return 2 * tensor.numel() * 4 / min(seconds) / 1e9


def optimizers(args: BenchmarkArguments) -> dict[str, list[dict[str, Any]]]:
    """Seconds and peak extra memory of one `step()`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device("meta"):
        bert = BertForMaskedLM(BertConfig(**(DEMO_BERT if args.quick else {}))).bert
    cases = {
        "BERT shapes": [tuple(p.shape) for p in bert.parameters()],
        "small tensors": [(64, 64)] * (50 if args.quick else 2000),
    }
    makers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "torch AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
        "RAdam": lambda p: RAdam(p),
        "AdamWarmup": lambda p: AdamWarmup(p, warmup_steps=100),
        "GIAdam": lambda p: GIAdam(p),
        "RAdam foreach": lambda p: RAdam(p, foreach=True),
        "RAdam loop": lambda p: RAdam(p, foreach=False),
        "torch AdamW foreach": lambda p: torch.optim.AdamW(p, foreach=True),
        "torch RAdam foreach": lambda p: torch.optim.RAdam(p, foreach=True),
        "torch RAdam loop": lambda p: torch.optim.RAdam(p, foreach=False),
    }
    if device.type == "cuda":
        makers["torch RAdam capturable"] = lambda p: torch.optim.RAdam(p, foreach=True, capturable=True)
    bandwidth = bandwidth_of(device)
    tables = {}
    for case, shapes in cases.items():
        parameters = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
        for p in parameters:
            p.grad = torch.randn_like(p)
        count = sum(p.numel() for p in parameters)
        steps = {name: make(parameters).step for name, make in makers.items()}
        for step in steps.values():
            for _ in range(6):  # state made, RAdam past its first updates
                step()
        memory = {name: peak_extra_megabytes(step) for name, step in steps.items()}
        seconds = interleave(steps, args.rounds, case)
        share = {name: BYTES_PER_PARAMETER * count / median(s) / 1e9 / bandwidth for name, s in seconds.items()}
        tables[f"{case}: {len(shapes)} tensors, {count / 1e6:.1f} M"] = rows_of(
            seconds, extra_mb=memory, of_bandwidth=share
        )
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


def record_by(group_by: str) -> Callable[[nn.Module], Any]:
    """Record and flush, as a Trainer that logs every update does."""
    recorder = GradientNormRecorder(None, group_by)

    def measure(model: nn.Module) -> None:
        recorder.record(model.named_parameters(), step=1)
        recorder.flush()

    return measure


def item_each(model: nn.Module) -> list[float]:
    """What people write: one `.norm().item()` a parameter."""
    return [p.grad.norm().item() for p in model.parameters() if p.grad is not None]


def gradient_norms(args: BenchmarkArguments) -> dict[str, list[dict[str, Any]]]:
    """Seconds of a whole training update with and without recording it, and of the recording alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = {"demo BERT, 32 x 16": (BertConfig(**DEMO_BERT), 32, 16)}
    if not args.quick:
        cases["BERT-base, 8 x 128"] = (BertConfig(), 8, 128)
    measures: dict[str, Callable[[nn.Module], Any] | None] = {
        "no recording": None,
        **{f"ours, {group_by}": record_by(group_by) for group_by in ("layer", "module", "parameter")},
        ".norm().item() each": item_each,
    }
    tables = {}
    for case, (config, batch, length) in cases.items():
        model = BertForMaskedLM(config).to(device)
        tokens = torch.randint(5, config.vocab_size, (batch, length), device=device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        updates = {name: partial(update, model, tokens, optimizer, measure) for name, measure in measures.items()}
        rows = tables[case] = rows_of(interleave(updates, args.rounds, case))
        # Differences of updates drown in their noise: the recording by itself, as a share of the update.
        model(input_ids=tokens, labels=tokens).loss.backward()
        alone = {f"{name}, alone": partial(m, model) for name, m in measures.items() if m is not None}
        for row in rows_of(interleave(alone, args.rounds, f"{case}, alone")):
            rows.append({**row, "ratio": row["median_ms"] / rows[0]["median_ms"]})
    return tables


def trainer(args: BenchmarkArguments) -> dict[str, list[dict[str, Any]]]:
    """Seconds of the same run in both Trainers, and seconds of import."""
    steps = 5 if args.quick else 60
    data = [{"input_ids": x, "labels": x} for x in torch.randint(5, 32, (32 * steps, 16))]
    common = {
        "max_steps": steps,
        "per_device_train_batch_size": 32,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    with TemporaryDirectory() as folder:

        def run(make: Callable[[], Trainer]) -> None:
            trainer = make()
            trainer.remove_callback(PrinterCallback)
            trainer.train()

        plain = TrainingArguments(folder, warmup_steps=steps // 5, **common)
        ours = WarmupTrainingArguments(
            folder, optim="radam", lr_scheduler_type="noam", warmup_type="linear", warmup_steps=steps // 5, **common
        )
        config = BertConfig(**DEMO_BERT)
        candidates = {
            "Trainer": lambda: run(lambda: Trainer(BertForMaskedLM(config), plain, train_dataset=data)),
            "WarmupTrainer, RAdam, recording": lambda: run(
                lambda: WarmupTrainer(BertForMaskedLM(config), ours, train_dataset=data)
            ),
        }
        runs = interleave(candidates, args.rounds, f"{steps} updates of the demo's BERT")
    imports = {
        name: lambda name=name: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
        for name in ("torch", "hf_warmup")
    }
    return {
        f"a run of {steps} updates of the demo's BERT": rows_of(runs),
        "import, in a new process": rows_of(interleave(imports, min(args.rounds, 10), "import")),
    }


def write_chart(tables: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A bar a candidate: its ratio to the first of its table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 0.32 * sum(len(rows) + 2 for rows in tables.values())), layout="constrained")
    grid = figure.subplots(
        len(tables), 1, squeeze=False, gridspec_kw={"height_ratios": [len(t) for t in tables.values()]}
    )
    for axes, (title, rows) in zip(grid.flat, tables.items(), strict=True):
        colors = [
            "#999999" if row["name"].startswith(("torch", "no ", "Trainer", ".norm")) else "#0072B2" for row in rows
        ]
        bars = axes.barh([row["name"] for row in rows], [row["ratio"] for row in rows], color=colors)
        axes.bar_label(bars, [f"{row['ratio']:.2f}" for row in rows], padding=3, fontsize=8)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("time, ratio to the first of each table", fontsize=9)
    figure.savefig(path, dpi=150)


def main() -> None:
    benchmarks = {"optimizers": optimizers, "gradient_norms": gradient_norms, "trainer": trainer}
    with one_sentence_for_mistakes():
        argv = sys.argv[1:]
        if argv and not argv[0].startswith("-"):  # a subcommand reads better than a flag
            argv = ["--what", *argv]
        (args,) = parse_arguments(HfArgumentParser(BenchmarkArguments), argv)
        if args.what not in benchmarks:
            raise ValueError(f"{args.what!r} is no benchmark: expected {', '.join(benchmarks)}.")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.rounds = 2
    tables = benchmarks[args.what](args)
    folder = Path(args.output_dir) / args.what
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        **environment(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    (folder / "results.json").write_text(json.dumps({"environment": machine, "tables": tables}, indent=1) + "\n")
    write_chart(tables, folder / "ratios.png")
    for title, rows in tables.items():
        print(f"\n{title}\n  {'':<34}{'median ms':>12}{'best ms':>12}{'ratio':>9}")
        for row in rows:
            known = ("name", "median_ms", "best_ms", "ratio")
            extra = "".join(f"  {key} {value:.2f}" for key, value in row.items() if key not in known)
            print(f"  {row['name']:<34}{row['median_ms']:>12.2f}{row['best_ms']:>12.2f}{row['ratio']:>9.3f}{extra}")
    print(f"\nWrote {folder / 'results.json'} and {folder / 'ratios.png'}")


if __name__ == "__main__":
    main()
