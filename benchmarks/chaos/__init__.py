"""Faults that are injected on purpose, and what comes of them."""
