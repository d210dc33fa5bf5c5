"""Speed and memory: `python -m scripts.benchmarks optimizers`."""
