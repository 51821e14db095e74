"""Layouts of programming data sets, whose answers are tests."""
