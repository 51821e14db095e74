"""Properties of tokenizers: arguments of chat templates, ends of responses, and comparison of vocabularies."""
