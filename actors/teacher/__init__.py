"""Teachers: Serve deployments, clients, quotas and the HTTP gateway."""
