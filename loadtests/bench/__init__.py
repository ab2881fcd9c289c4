"""The benchmarks behind docs/BENCHMARKS.md: `python -m loadtests.bench` measures and writes that page."""
