"""Heartbeats: the processes of a run on every node, and the monitor that ends those that have stopped."""
