"""The latency benchmark of `Recommend`: `python -m benchmarks.latency`."""
