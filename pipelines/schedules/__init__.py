"""Recurring runs: schedule store, leases, cron times, prompt refresh, run processes and notifications."""
