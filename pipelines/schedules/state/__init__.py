"""Parts of the schedule store beside the schedules and their ticks: queues, triggers and changes."""
