"""The experience broker and the records it hands to the learner."""
