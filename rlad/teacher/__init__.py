"""The teacher protocol: wire format, HTTP client and mixtures."""
