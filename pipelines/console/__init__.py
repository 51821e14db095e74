"""Web console: pages and a JSON API over run directories, schedules and a registry, and actions on them."""
