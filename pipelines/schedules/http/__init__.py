"""HTTP interface of the schedule daemon."""
