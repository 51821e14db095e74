"""What measures speed: one command each (`python -m benchmarks.learner --json OUT`), never part of the tests."""
