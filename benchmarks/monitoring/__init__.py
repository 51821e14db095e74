"""A live run under a real Prometheus: `python -m benchmarks.monitoring`."""
