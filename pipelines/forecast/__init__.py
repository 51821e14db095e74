"""What a step should take and cost, from the sizes of models, the lengths of responses and the figures of a device: docs/forecast.md."""
