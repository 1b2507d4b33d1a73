"""Measurements, each with a reference from the same run beside it: `python -m tests.benchmarks`, or `make bench`."""
