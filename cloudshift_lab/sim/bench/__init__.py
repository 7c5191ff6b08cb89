"""Benchmarks against what people use today: same machine, same run, every sample kept."""
