"""Commands that check a machine."""
