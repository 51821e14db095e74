"""Promotion decision of a tick: comparison with the version in production, gates, and approval."""
