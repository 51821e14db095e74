"""Ray clusters over network namespaces."""
