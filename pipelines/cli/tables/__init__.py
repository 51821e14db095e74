"""Tables and lists that commands print."""
