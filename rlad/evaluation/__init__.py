"""Accuracy, comparison and promotion statistics."""
