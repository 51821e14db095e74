"""Configuration of the sample log and the trackers."""
