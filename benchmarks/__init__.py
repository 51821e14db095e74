"""Benchmarks, one command each (`python -m benchmarks.learner --json OUT`). They are not part of the tests."""
