"""Configuration of what a run tells about itself: the sample log and the trackers."""
