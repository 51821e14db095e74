"""Code that runs inside a sandbox's processes. It imports the standard library and pyseccomp only."""
