"""Reinforcement-aware distillation of reasoning models (RLAD, arXiv:2602.22495).

This package holds the method and its contracts, in Python, numpy and torch. It never imports ray, vllm, deepspeed,
`actors` or `pipelines`.
"""

__version__ = "0.1.0"
