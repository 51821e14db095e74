"""Model registry: versions of trained models, their lineage, and aliases such as `production`."""
