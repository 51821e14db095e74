"""Commands of `rlad registry` that govern a model: notes, approvals, webhooks and serving."""
