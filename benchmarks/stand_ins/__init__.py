"""Actors that stand for rollout workers and pools in benchmarks."""
