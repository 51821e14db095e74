"""Runs without engines: the real scheduling, and pools that only take the time that engines would."""
