"""Traces of offline distillation: their generation by the teacher, and training on them."""
