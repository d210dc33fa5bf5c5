"""Scripts of hf_warmup: the comparison, fine-tuning, reproductions and benchmarks."""
