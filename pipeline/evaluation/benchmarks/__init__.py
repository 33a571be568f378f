"""Benchmark tasks on live checkpoints; one file a benchmark, one way to run and count them all."""
