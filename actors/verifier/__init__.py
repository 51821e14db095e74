"""The verifier pool and its killable processes."""
