"""Ray actors and deployments, one role a file: build an engine, forward calls, report health."""
