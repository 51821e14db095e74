"""Experiment trackers behind one protocol, each of which may fail or be slow without effect on the run."""
