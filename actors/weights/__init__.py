"""Weight updates from the learner to the rollout workers."""
