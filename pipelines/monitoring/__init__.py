"""Figures of runs for other systems: experiment trackers and Prometheus."""
