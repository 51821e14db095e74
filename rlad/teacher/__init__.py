"""Teacher protocol: wire format, HTTP client, retries and mixtures of teachers."""
