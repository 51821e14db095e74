"""Pools of actors: replacement, routing and placement."""
