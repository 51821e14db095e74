"""Demo and tests on real language models: fetching them, and prompts that the smallest of them can learn from."""
