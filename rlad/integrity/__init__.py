"""Integrity of files: durable and atomic writes, SHA-256 manifests of directories, and seals of files that grow."""
