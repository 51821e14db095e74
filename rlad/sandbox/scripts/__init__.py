"""Programs of rlad that run inside the sandbox because they read what a model wrote."""
