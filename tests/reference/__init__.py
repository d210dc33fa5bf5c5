"""Plain float64 transcriptions of the papers: what the tests compare with. Nothing here imports hf_warmup."""
