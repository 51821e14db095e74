"""Training of the starter models: a tokenizer, a teacher and a weak student made from generated puzzles, on CPU."""
