"""`rlad doctor`: facts are collected first, and pure functions judge them."""
