"""Checks of a run before it starts, and the memory of its pools."""
