"""Knights & Knaves: puzzles, their solver and generator, and the two forms they are asked in (sentences and compact)."""
