"""HTTP requests to webhooks: with retries, signed, and without secrets in errors."""
