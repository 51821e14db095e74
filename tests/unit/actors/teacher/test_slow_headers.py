"""Clients that never finish the headers of a request, against the HTTP server that Serve's proxy runs (uvicorn)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from ray.serve.config import HTTPOptions

from .test_http_gateway import TOKEN, FakeReplicas, application

SLOW_CLIENTS = 200
TIMEOUT_S = 30


@asynccontextmanager
async def served(replicas: FakeReplicas) -> AsyncIterator[int]:
    """Serve a gateway on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=SLOW_CLIENTS) as listener:
        settings = uvicorn.Config(
            application(replicas),
            lifespan="off",
            log_config=None,
            timeout_keep_alive=HTTPOptions().keep_alive_timeout_s,
        )
        server = uvicorn.Server(settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(serving, TIMEOUT_S)


async def test_unfinished_headers_hold_connections_but_neither_a_replica_nor_another_client() -> None:
    replicas = FakeReplicas()
    async with served(replicas) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SLOW_CLIENTS)]
        for _, writer in slow:
            writer.write(b"POST /v1/score HTTP/1.1\r\nHost: teacher\r\nX-Slow: ")
            await writer.drain()
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(
                f"http://127.0.0.1:{port}/v1/teacher", headers={"Authorization": f"Bearer {TOKEN}"}
            )
        assert answer.status_code == 200
        assert replicas.calls == 0
        # The limit that docs/concepts/security.md names: the server has no deadline for headers.
        assert not any(reader.at_eof() for reader, _ in slow)
        for _, writer in slow:
            writer.close()
            await writer.wait_closed()
