"""Layouts of puzzles and of multiple choice."""
