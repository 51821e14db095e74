"""A client of a teacher service over HTTP, for whoever is not on its Ray cluster: another cluster's runs, a notebook, a script.

async with TeacherHttpClient("https://host/kk-teacher", token=read_token(), client="my-run", tokenizer=fingerprint) as teacher:
    scores = await teacher.score(group)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
from pydantic import TypeAdapter, ValidationError

from rlad.config import RemoteTeacherConfig, TeacherHttpConfig
from rlad.contracts import RolloutGroup, TeacherScores, TeacherSupport
from rlad.errors import AccessError, DeadlineError, EngineError, WorkerLostError
from rlad.teacher.retries import retry_until
from rlad.teacher.wire_format import MEDIA_TYPE, ScoringRequest, TeacherIdentity, error_of, scores_from_bytes

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Of connecting, and of questions that a service answers at once.
_CONTROL_TIMEOUT_S = 30.0
_SHORTEST_TOKEN = 16
_IDENTITY = TypeAdapter(TeacherIdentity)


def read_token(where: RemoteTeacherConfig | TeacherHttpConfig) -> str:
    """A service's token: the content of a file, else of an environment variable.

    Raises:
        AccessError: there is none, or one that could be guessed.
    """
    if where.token_file is not None:
        try:
            token, source = Path(where.token_file).expanduser().read_text().strip(), where.token_file
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(
                f"the teacher service's token cannot be read from {where.token_file}: {type(error).__name__}"
            ) from error
    else:
        token, source = os.environ.get(where.token_env, "").strip(), f"the environment variable {where.token_env}"
        if not token:
            raise AccessError(f"no token of the teacher service: set {where.token_env}, or name a file with token_file")
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise AccessError(
            f"{source} holds no token: at least {_SHORTEST_TOKEN} printable characters without spaces, as `openssl rand -hex 32` makes them"
        )
    return token


def sends_token_in_clear(url: str) -> bool:
    """Whether whoever is between here and there can read the token."""
    return urlsplit(url).scheme == "http" and not _is_loopback(url)


async def health_status(url: str) -> int | None:
    """HTTP status of a service's health, for which no token is needed: 200 where it is well; None where nothing answers."""
    async with httpx.AsyncClient(timeout=_CONTROL_TIMEOUT_S, trust_env=not _is_loopback(url)) as http:
        try:
            return (await http.get(f"{url.rstrip('/')}/healthz")).status_code
        except httpx.HTTPError:
            return None


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


class TeacherHttpClient:
    """Scores groups at a teacher service. May be used by many tasks at once; close it, or use it as an asynchronous context manager."""

    def __init__(
        self,
        url: str,
        *,
        token: str,
        client: str,
        tokenizer: str,
        timeout_s: float = 300.0,
        max_retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: of the service, as `rlad teacher status` prints it.
            token: of the service.
            client: who asks; clients of one name share one quota.
            tokenizer: fingerprint of that of the model which samples the groups (`rlad.data.chat.tokenizer_fingerprint`).
            timeout_s: deadline of scoring one group, retries included.
            max_retries: after the connection, or the replica behind it, was lost.
            transport: in place of a network.
        """
        self.url = url.rstrip("/")
        self._client, self._tokenizer = client, tokenizer
        self._timeout_s, self._max_retries = timeout_s, max_retries
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(_CONTROL_TIMEOUT_S, read=timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=not _is_loopback(url),  # no proxy stands between this machine and itself
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def identity(self) -> TeacherIdentity:
        """What the teacher is.

        Raises:
            AccessError, WorkerLostError, DeadlineError, EngineError: as `score`.
        """
        body = await retry_until(
            lambda: self._send("GET", "/v1/teacher"),
            max_retries=self._max_retries,
            timeout_s=min(self._timeout_s, _CONTROL_TIMEOUT_S),
            what=f"the teacher at {self.url} did not say what it is",
        )
        try:
            return _IDENTITY.validate_json(body)
        except ValidationError as error:
            raise EngineError(f"what answers at {self.url} is no teacher service of this version: {error}") from error

    async def score(self, group: RolloutGroup, support: TeacherSupport = None) -> TeacherScores:
        """Have a group scored.

        Args:
            support: what to score beside the sampled tokens; nothing costs nothing.

        Raises:
            DeadlineError: not scored within `timeout_s`, waiting for the client's quota included.
            WorkerLostError: no connection, or replicas died, in every try.
            AccessError: the token is refused.
            VocabularyMismatchError, ContractError, EngineError: the service refused the group or failed on it; not tried again.
        """
        request = ScoringRequest(
            group=group, tokenizer=self._tokenizer, client=self._client, support=support
        ).to_bytes()
        body = await retry_until(
            lambda: self._send("POST", "/v1/score", request),
            max_retries=self._max_retries,
            timeout_s=self._timeout_s,
            what=f"the teacher at {self.url} did not score a group of {group.num_tokens} tokens",
        )
        scores = scores_from_bytes(body)
        if (scores.uid, scores.attempt, len(scores.logprobs)) != (group.uid, group.attempt, group.num_tokens):
            raise EngineError(
                f"the teacher at {self.url} scored {len(scores.logprobs)} tokens of {scores.uid} attempt {scores.attempt}, "
                f"asked for were {group.num_tokens} of {group.uid} attempt {group.attempt}"
            )
        return scores

    async def _send(self, method: str, path: str, content: bytes | None = None) -> bytes:
        who = f"the teacher at {self.url}"
        try:
            response = await self._http.request(
                method, f"{self.url}{path}", content=content, headers={"Content-Type": MEDIA_TYPE} if content else {}
            )
        except httpx.ReadTimeout as error:
            raise DeadlineError(f"no answer from {who} in time") from error
        except httpx.HTTPError as error:
            raise WorkerLostError(f"{who} is not reachable: {type(error).__name__}: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise error_of(response.status_code, response.content, who=who)
        return response.content
