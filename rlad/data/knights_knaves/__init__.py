"""Knights & Knaves puzzles: solver, generator, and two prompt forms (sentences and compact notation)."""
