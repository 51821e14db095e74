"""Resolution of a run: everything that is determined once, before anything starts."""
