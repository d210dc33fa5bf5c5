"""Speed and memory of hf_warmup: `python -m scripts.benchmarks optimizers`."""
