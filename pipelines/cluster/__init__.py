"""Connection to a Ray cluster and what a run needs of it."""
