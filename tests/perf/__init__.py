"""The performance suite: `python -m tests.perf` measures a full guest and writes tests/perf/RESULTS.md."""
