"""Tests of hf_warmup."""
