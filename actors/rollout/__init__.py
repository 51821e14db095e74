"""The rollout pool and its workers."""
