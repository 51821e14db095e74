"""`rlad deploy render`: Kubernetes manifests of a run, derived from its configuration."""

from typing import Literal

Kind = Literal["all", "rayjob", "raycluster", "rayservice", "cronjob", "raycronjob"]
"""Kind of manifests to render."""
