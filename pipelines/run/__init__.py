"""The run directory and what a run writes into it."""
