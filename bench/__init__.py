"""Measures Sluice against its rivals, each pair in one run: `make bench`, docs/benchmarks.md."""
