"""Transformers engines for teacher, reference and reward models."""
