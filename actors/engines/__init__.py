"""The only modules that import vllm or deepspeed."""
