"""Environment of the Ray job that this process belongs to, if any."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from rlad.errors import RunDirectoryError

DRIVER = uuid.uuid4().hex
"""Token of this driver, which tells its processes from those of other drivers."""

DRIVER_VARIABLE = "RLAD_DRIVER"
"""Environment variable of every process that a driver starts, on every node. Its value is the driver's token."""


def job_runtime_env() -> dict[str, Any]:
    """Return the `runtime_env` that the job was submitted with; empty outside of a job."""
    config: dict[str, Any] = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return config.get("runtime_env") or {}


def require_lasting(run_dir: Path) -> None:
    """Refuse a run directory inside the job's uploaded working directory.

    Ray deletes that directory when the job ends, and every node has its own copy.

    Raises:
        RunDirectoryError: The run directory is inside the working directory of the job.
    """
    if "working_dir" in job_runtime_env() and run_dir.expanduser().resolve().is_relative_to(Path.cwd().resolve()):
        raise RunDirectoryError(
            f"run directory {run_dir} is inside the job's working directory, which Ray deletes when the job ends: "
            "set --run-dir to an absolute path on storage that all nodes mount"
        )
