"""`rlad init`: a first configuration for a student, a teacher and prompts."""
