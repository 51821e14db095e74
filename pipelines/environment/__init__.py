"""Facts about this machine and its packages, and pure checks of them."""
