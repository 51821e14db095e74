"""Examples of extensions, one file each; README.md says how to run them."""
