"""Checks of teacher services that a run shares with others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Literal

from actors.teacher.client import ask_identity
from actors.teacher.deployment import find_service, require_fingerprint, require_tokenizer
from pipelines.cluster.connection import connected
from pipelines.resolution.models import ModelFiles
from pipelines.resolution.teacher_routing import require_can_score
from rlad.config import RemoteTeacherConfig, RunConfig, ServiceTeacherConfig, SharedTeacherConfig
from rlad.data.chat import tokenizer_fingerprint
from rlad.errors import AccessError, DeadlineError, RladError, WorkerLostError
from rlad.teacher.http_client import TeacherHttpClient, read_token, sends_token_in_clear
from rlad.teacher.wire_format import TeacherIdentity

# Short, because `rlad plan` is to answer within seconds.
_ASK_TIMEOUT_S = 10.0
# Errors that are warnings: the service may be reachable from the cluster of the run, but not from this machine.
_UNREACHABLE = (AccessError, DeadlineError, WorkerLostError)


def check_shared_teachers(
    config: RunConfig, files: ModelFiles
) -> Iterator[tuple[Literal["ok", "warning", "error"], str]]:
    """Query the shared teachers of a run. Yield the level and text of one finding or more for each."""
    for pool, shared in config.shared_teachers.items():
        if isinstance(shared, ServiceTeacherConfig) and config.cluster.address is None:
            yield "warning", f"{pool} {shared.label} is not checked: --address is not set"
            continue
        if isinstance(shared, RemoteTeacherConfig) and sends_token_in_clear(shared.url):
            yield (
                "warning",
                f"{pool} {shared.label}: the token is sent unencrypted; put TLS in front of the service and use https",
            )
        try:
            identity = _identity_of(shared, config)
            _require_fit(pool, identity, shared, config, files)
        except _UNREACHABLE as error:
            yield "warning", f"{pool} {shared.label} cannot be reached from this machine: {error}"
        except RladError as error:
            yield "error", str(error)
        else:
            found = f"model {identity.teacher[:12]}, tokenizer {identity.tokenizer[:12]}, {identity.engine} engine"
            yield "ok", f"{pool} {shared.label}: {found}"


def _identity_of(shared: SharedTeacherConfig, config: RunConfig) -> TeacherIdentity:
    if isinstance(shared, ServiceTeacherConfig):
        with connected(config.cluster):
            return asyncio.run(_ask_service(shared.service))
    return asyncio.run(_ask_url(shared))


async def _ask_service(name: str) -> TeacherIdentity:
    return await ask_identity(await find_service(name), who=f"teacher service {name!r}")


async def _ask_url(shared: RemoteTeacherConfig) -> TeacherIdentity:
    token = read_token(shared)
    async with TeacherHttpClient(
        shared.url, token=token, client="plan", tokenizer="", timeout_s=_ASK_TIMEOUT_S, max_retries=0
    ) as client:
        return await client.identity()


def _require_fit(
    pool: str, identity: TeacherIdentity, shared: SharedTeacherConfig, config: RunConfig, files: ModelFiles
) -> None:
    require_fingerprint(identity, shared.fingerprint, who=f"{pool} {shared.label}")
    if not files.is_absent(config.student.path):
        student = files.directory(config.student.path)
        require_tokenizer(identity, tokenizer_fingerprint(student), who=f"{pool} {shared.label}")
        require_can_score(pool, identity, config, student=student)
