"""What recurring runs stand on: their store and lease, the clock, prompts, the process of a run, notices. `pipelines.schedules.tick` is one tick of it."""
