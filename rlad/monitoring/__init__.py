"""The table of Prometheus metrics."""
