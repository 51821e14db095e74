"""Tests of the stand-ins that `pipelines.simulation` exports, except those that test_simulator.py covers."""

from __future__ import annotations

import asyncio

from pipelines.simulation import InProcess, Server, publication
from rlad.testing import run_in_virtual_time


def test_server_works_on_one_request_at_a_time() -> None:
    async def three_requests() -> list[float]:
        server, ended_at = Server(), []

        async def request(seconds: float) -> None:
            await server.work(seconds)
            ended_at.append(asyncio.get_running_loop().time())

        await asyncio.gather(request(3), request(2), request(1))
        return ended_at

    assert run_in_virtual_time(three_requests()) == [3, 5, 6]


async def test_object_in_process_is_called_like_a_remote_actor() -> None:
    class Counter:
        value = 0

        async def add(self, amount: int) -> int:
            self.value += amount
            return self.value

    counter = InProcess(Counter())
    assert await counter.add.remote(2) == 2
    assert await counter.add.remote(3) == 5


def test_publication_names_its_version() -> None:
    manifests = [publication(version).manifest for version in (1, 2)]
    assert [manifest.version for manifest in manifests] == [1, 2]
    assert manifests[0].checksum != manifests[1].checksum
