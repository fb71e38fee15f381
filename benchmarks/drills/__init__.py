"""Promises of a server, each tried on a real one: `python -m benchmarks.drills WORK --out FILE.json`."""
