"""Examination of a machine and its cluster: collects all facts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.doctor.facts import Facts, Links, Trial
from pipelines.doctor.machine import collect_machine, collect_sandbox
from pipelines.environment.packages import Packages, collect_packages
from rlad.config import ClusterConfig
from rlad.errors import PlanError


def examine(
    *,
    address: str | None = None,
    transport: str = "object_store",
    work_dir: Path | None = None,
    starts_engines: bool = True,
    overrides: Sequence[str] = (),
) -> Facts:
    """Collect the facts about this machine and the cluster.

    Args:
        address: Address of a Ray cluster; None starts one on this machine.
        transport: Transport of weight updates in the trial run.
        work_dir: Directory for temporary files, which all nodes of the cluster must see; default: the system's.
        starts_engines: Whether to make the trial run, and to measure the cluster.
        overrides: Settings that override the configuration of the trial run.

    Raises:
        ConfigError: The transport or an override is invalid.
    """
    packages, machine, sandbox = collect_packages(), collect_machine(), collect_sandbox()
    trial: Trial | None = None
    links: Links | None = None
    if starts_engines:
        with tempfile.TemporaryDirectory(prefix="rlad-doctor-", dir=work_dir) as folder:
            trial, links = _measured(packages, Path(folder), address=address, transport=transport, overrides=overrides)
    return Facts(packages=packages, machine=machine, sandbox=sandbox, trial=trial, links=links)


def _measured(
    packages: Packages, folder: Path, *, address: str | None, transport: str, overrides: Sequence[str]
) -> tuple[Trial, Links | None]:
    # Imported late: they import Ray and the run's pipeline, which takes seconds.
    from pipelines.cluster.connection import connected
    from pipelines.doctor.links import measure_links
    from pipelines.doctor.trial import run_trial, trial_config

    try:
        with connected(ClusterConfig(address=address)) as resources:
            # A CPU build cannot use the GPUs that Ray reports.
            gpus = 0 if packages.torch_cuda is None else int(resources.gpus)
            config = trial_config(folder, gpus=gpus, transport=transport, address=address, overrides=overrides)
            trial = run_trial(config, folder / "run")
            return trial, measure_links(gpus, folder)
    except PlanError as error:
        return Trial(dtype="float32", transport=transport, device="CPU", error=str(error)), None
