"""Layouts of training frameworks and of chat data."""
