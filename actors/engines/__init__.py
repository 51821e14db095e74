"""Engines. Only modules of this package import vllm or deepspeed."""
