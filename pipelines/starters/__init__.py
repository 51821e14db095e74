"""Training of the starter models: a tokenizer, a teacher and a weak student, from generated puzzles, on CPU."""
