"""vLLM engines: sampling, scoring and weight updates."""
