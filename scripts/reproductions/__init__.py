"""Claims of papers about warmup, tested again: `python -m scripts.reproductions depth`."""
