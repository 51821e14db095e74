"""Simulated runs: the real scheduling over pools that only take time."""
