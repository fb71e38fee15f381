"""Our index against other libraries: `python -m benchmarks.ann`."""
