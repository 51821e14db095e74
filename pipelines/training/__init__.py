"""The training loop of the driver."""
