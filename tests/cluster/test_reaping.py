"""The next driver of a run deletes the Serve applications that a killed driver left, and no others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from ray import serve

from actors.teacher.serve import delete_application, deploy_application
from pipelines.cluster.owner import Owner, owned, read_owner
from pipelines.run.directory import RunDirectory

TIMEOUT_S = 120.0
LEFT, OTHER = "kk-1-teacher", "kk-2-teacher"


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
class Small:
    """Deployment that stands for a teacher."""

    async def __call__(self) -> int:
        return 1


@pytest.fixture
def applications() -> Iterator[None]:
    """Two running applications, of which the test deletes one."""
    for name in (LEFT, OTHER):
        asyncio.run(deploy_application(Small.bind(), app_name=name, start_timeout_s=TIMEOUT_S))
    yield
    asyncio.run(delete_application(OTHER, timeout_s=TIMEOUT_S))
    serve.shutdown()


def test_application_of_a_killed_driver_is_deleted_by_the_next_driver_of_its_run(
    applications: None, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    killed = Owner(driver="killed", run_id="kk-1", host="elsewhere", pid=1, started_at=0.0)
    run.owner.write_text(json.dumps(asdict(killed)))
    assert set(serve.status().applications) == {LEFT, OTHER}
    with owned(run, "kk-1", applications=[LEFT]):
        assert set(serve.status().applications) == {OTHER}
        present = read_owner(run)
        assert present is not None
        assert present.driver != "killed"
    assert read_owner(run) is None
