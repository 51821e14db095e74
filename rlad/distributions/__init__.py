"""Distributions over next tokens: the most likely tokens, and distillation from hidden states."""
