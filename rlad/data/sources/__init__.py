"""Prompt sources that are not on a local disk: files on object stores, and data sets on the Hugging Face hub."""
