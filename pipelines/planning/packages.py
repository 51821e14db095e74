"""Findings of `rlad plan` on the installed packages."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.environment.packages import Packages, package_checks
from pipelines.environment.requirements import device_checks
from pipelines.monitoring.trackers.opening import missing_libraries
from pipelines.planning.plan import Finding
from rlad.config import RunConfig


def package_findings(config: RunConfig, packages: Packages, *, is_elsewhere: bool) -> Iterator[Finding]:
    """Yield a finding for each problem of the packages.

    Args:
        config: Configuration of the run.
        packages: Packages of this machine.
        is_elsewhere: Whether the plan is for other machines, whose packages are not known.
    """
    for missing in missing_libraries(config.tracking):
        yield Finding(level="warning" if is_elsewhere else "error", text=missing)
    devices = [check for check in device_checks(config, packages) if check.status == "error"]
    if is_elsewhere:
        for check in devices:
            yield Finding(level="warning", text=f"here {check.detail}; on the machines of the run: {check.remedy}")
        return
    for check in (*package_checks(packages), *devices):
        if check.status != "ok":
            yield Finding(level=check.status, text=f"{check.detail}. {check.remedy}")
