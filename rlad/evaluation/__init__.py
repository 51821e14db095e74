"""Statistics of evaluations: accuracy, comparison of methods, and promotion decisions."""
