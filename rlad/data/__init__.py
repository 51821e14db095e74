"""Where prompts come from: generated puzzles, prompt files, chat templates and tokenizer fingerprints."""
