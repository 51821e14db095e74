"""Layouts of prompt data sets: the columns of one project or data set, read as prompts."""
