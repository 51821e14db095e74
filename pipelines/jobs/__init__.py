"""Runs as Ray jobs."""
