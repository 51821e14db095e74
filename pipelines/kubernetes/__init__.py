"""`rlad deploy render`: what a run needs of Kubernetes, written from the run's own configuration."""

from typing import Literal

Kind = Literal["all", "rayjob", "raycluster", "rayservice", "cronjob", "raycronjob"]
"""What to render."""
