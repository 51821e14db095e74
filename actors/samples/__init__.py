"""The sample recorder: fetches sampled groups from the object store and writes the sample log."""
