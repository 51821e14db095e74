"""Checks of this repository that `make lint` runs."""
