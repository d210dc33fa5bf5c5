"""Measure what the parts of hf_warmup cost, compared with torch, transformers and other libraries.

    python -m scripts.benchmarks optimizers                 # one step() on BERT-base shapes and on small tensors
    python -m scripts.benchmarks gradient-norms             # gradient norms of one update, by themselves
    python -m scripts.benchmarks guard                      # the snapshot of a rewind, and the norms of updates
    python -m scripts.benchmarks trainer                    # runs of Trainer and of WarmupTrainer
    python -m scripts.benchmarks imports                    # imports in new processes
    python -m scripts.benchmarks large-recording            # time and memory of reading a million updates, or 200 runs
    python -m scripts.benchmarks saves                      # saving and checking a checkpoint of BERT-base
    python -m scripts.benchmarks all --json docs/benchmarks.json      # all of these, in 16 minutes
    python -m scripts.benchmarks kills --json docs/benchmarks.json    # 120 kills at random moments: the same result?
    python -m scripts.benchmarks damages --json docs/benchmarks.json  # files of checkpoints damaged: is it noticed?
    python -m scripts.benchmarks engines --json docs/benchmarks.json  # each launcher, killed and asked to stop

Candidates take turns in random order. The tables have medians, best values, and ratios to the first row; on a shared
machine only the ratios mean something. `--quick` uses small sizes and one round. The results are stored in `--json`
after each section; `all` continues an interrupted file of the same machine, versions and commit, and `kills` and
`damages` continue after the last chain of the same versions and commit. Other libraries are measured if they are
installed: `pip install ".[bench]"`, and timm.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_warmup.cli import check_minimums, exit_on_user_error, parse_arguments, words_first
from hf_warmup.model_card import environment

from .measure import print_table
from .sections import FAULTS, SECTIONS, BenchmarkArguments, processor, read_results


def main() -> None:
    with exit_on_user_error("The same command continues with the next section."):
        (args,) = parse_arguments(HfArgumentParser(BenchmarkArguments), words_first("what"))
        measures = SECTIONS | FAULTS
        if args.what not in (*measures, "all"):
            raise ValueError(f"what={args.what!r}: expected one of {', '.join(measures)}, all.")
        check_minimums(args, rounds=0, threads=0)
        if args.threads:
            torch.set_num_threads(args.threads)
        described = {
            **environment(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "quick": args.quick,
            "date": "",
        }
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        results = read_results(path, described, args.what)
        todo = [name for name in SECTIONS if name not in results] if args.what == "all" else [args.what]
        for name in tqdm(todo, desc="sections", unit="section"):
            tables = measures[name](args)
            today = date.today().isoformat()
            results[name] = {"environment": {**described, "date": today}, "tables": tables}
            ordered = {name: results[name] for name in measures if name in results}
            path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    for name in SECTIONS if args.what == "all" else [args.what]:
        for title, table in results[name]["tables"].items():
            print_table(f"{name}: {title}", table)
    print(f"\nWrote {path}")


if __name__ == "__main__":
    sys.exit(main())
