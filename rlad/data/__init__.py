"""Prompt records and their sources, chat templates, training order, and offline traces."""
