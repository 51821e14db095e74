"""The `rlad` command line."""
