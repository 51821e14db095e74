"""The table of Prometheus metrics, and the cost of runs."""
