"""Drivers a person runs."""
