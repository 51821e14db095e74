"""Layouts of mathematics data sets."""
