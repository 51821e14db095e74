"""Faults that are injected on purpose, and what comes of them. `python -m benchmarks.chaos` runs all parts."""

# Exit status of a part that cannot run here. Its last line of output is the reason.
SKIPPED = 77
