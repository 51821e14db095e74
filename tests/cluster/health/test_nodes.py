"""Monitor of processes on another node than the driver's."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.health.monitor import HeartbeatMonitor

from .sleeper import Sleeper

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEARTBEAT_S = 0.3


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """Two nodes; the second one has the resource `far`. Overrides the cluster of the other tests."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1, resources={"far": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


async def test_process_on_another_node_is_killed_there_and_lost_with_its_node(cluster: Cluster) -> None:
    monitor, lost = (
        HeartbeatMonitor("run-on-two-nodes", heartbeat_s=HEARTBEAT_S, missed_heartbeats=3),
        asyncio.Queue[str](),
    )

    async def watched_pid() -> int:
        actor = Sleeper.options(resources={"far": 0.1}).remote()
        process = await monitor.watch(actor, "far", deadline_s=60, on_lost=lost.put_nowait)
        assert process.node != ray.get_runtime_context().get_node_id()
        return process.pid

    async with asyncio.timeout(120), monitor.running():
        stopped = await watched_pid()
        os.kill(stopped, signal.SIGSTOP)
        assert await lost.get() == f"its process {stopped} was stopped, 3 heartbeats in a row"
        await watched_pid()
        await asyncio.to_thread(cluster.remove_node, next(iter(cluster.worker_nodes)))
        assert await lost.get() in ("its node was removed", "its process has ended")
        assert monitor.health() == ()
