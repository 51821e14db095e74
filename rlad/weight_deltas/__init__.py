"""Exact deltas between versions of a weight file: bit patterns of the elements that changed, compressed."""
