"""Configuration of the sample log, the trackers and the cost."""
