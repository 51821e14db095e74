"""Model references and their resolution to local directories."""
