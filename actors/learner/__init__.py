"""The learner: ranks in Ray Train and the driver's side of them."""
