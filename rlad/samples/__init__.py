"""The sample log: sampled groups of a run as parquet files."""
