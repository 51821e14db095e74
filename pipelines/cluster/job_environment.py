"""What a program has to know of the Ray job that it runs in, if it runs in one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from rlad.errors import RunDirectoryError


def job_runtime_env() -> dict[str, Any]:
    """The `runtime_env` that the job was submitted with; empty outside a job."""
    config: dict[str, Any] = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return config.get("runtime_env") or {}


def require_lasting(run_dir: Path) -> None:
    """Refuse a run directory inside what was uploaded with the job: Ray deletes that folder when the job ends, and the other nodes have their own.

    Raises:
        RunDirectoryError: what to give instead.
    """
    if "working_dir" in job_runtime_env() and run_dir.expanduser().resolve().is_relative_to(Path.cwd().resolve()):
        raise RunDirectoryError(
            f"the run directory {run_dir} is relative, so it would be in the job's working directory and vanish with it: "
            "give --run-dir as an absolute path on storage that all nodes see"
        )
