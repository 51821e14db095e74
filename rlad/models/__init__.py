"""Model references and how each becomes a local directory."""
