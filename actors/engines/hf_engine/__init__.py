"""Transformers engines: teacher, reference and reward models."""
