"""HTTP client of a teacher service.

For callers outside of the service's Ray cluster: runs of another cluster, notebooks, scripts.

Example:

    async with TeacherHttpClient("https://host/kk-teacher", token=read_token(), client="my-run", tokenizer=fingerprint)
    as teacher:
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
# Deadline of connecting, and of requests that a service answers at once.
_CONTROL_TIMEOUT_S = 30.0
_SHORTEST_TOKEN = 16
_IDENTITY = TypeAdapter(TeacherIdentity)


def read_token(where: RemoteTeacherConfig | TeacherHttpConfig) -> str:
    """Read the token of a service from its file, or from its environment variable if no file is configured.

    Raises:
        AccessError: The token is missing or too easy to guess.
    """
    if where.token_file is not None:
        try:
            token, source = Path(where.token_file).expanduser().read_text().strip(), where.token_file
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(
                f"cannot read the token of the teacher service from {where.token_file}: {type(error).__name__}"
            ) from error
    else:
        token, source = os.environ.get(where.token_env, "").strip(), f"the environment variable {where.token_env}"
        if not token:
            raise AccessError(f"the teacher service requires a token: set {where.token_env}, or `token_file`")
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise AccessError(
            f"{source} does not hold a valid token: expected at least {_SHORTEST_TOKEN} printable ASCII characters "
            "without spaces; create one with `openssl rand -hex 32`"
        )
    return token


def sends_token_in_clear(url: str) -> bool:
    """Return whether requests to this URL send the token unencrypted over a network."""
    return urlsplit(url).scheme == "http" and not _is_loopback(url)


async def health_status(url: str) -> int | None:
    """Return the HTTP status of a service's health endpoint, 200 if healthy; None if it does not answer.

    The endpoint requires no token.
    """
    async with httpx.AsyncClient(timeout=_CONTROL_TIMEOUT_S, trust_env=not _is_loopback(url)) as http:
        try:
            return (await http.get(f"{url.rstrip('/')}/healthz")).status_code
        except httpx.HTTPError:
            return None


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


class TeacherHttpClient:
    """HTTP client of a teacher service.

    Tasks may share a client. Close it after use, or use it as an asynchronous context manager.
    """

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
            url: URL of the service, as printed by `rlad teacher status`.
            token: Token of the service.
            client: Name of this client. Clients of the same name share one quota.
            tokenizer: Fingerprint of the tokenizer of the model that samples the groups, see
                `rlad.data.chat.tokenizer_fingerprint`.
            timeout_s: Deadline for one group in seconds, including retries.
            max_retries: Number of retries after the loss of the connection or of a replica.
            transport: Transport to use instead of the network, for tests.
        """
        self.url = url.rstrip("/")
        self._client, self._tokenizer = client, tokenizer
        self._timeout_s, self._max_retries = timeout_s, max_retries
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(_CONTROL_TIMEOUT_S, read=timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=not _is_loopback(url),  # a proxy cannot reach this machine's loopback
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def identity(self) -> TeacherIdentity:
        """Return the identity of the teacher.

        Raises:
            AccessError, WorkerLostError, DeadlineError, EngineError: See `score`.
        """
        body = await retry_until(
            lambda: self._send("GET", "/v1/teacher"),
            max_retries=self._max_retries,
            timeout_s=min(self._timeout_s, _CONTROL_TIMEOUT_S),
            failure=f"the teacher at {self.url} did not report its identity",
        )
        try:
            return _IDENTITY.validate_json(body)
        except ValidationError as error:
            raise EngineError(f"{self.url} is not a teacher service of this version of rlad: {error}") from error

    async def score(self, group: RolloutGroup, support: TeacherSupport = None) -> TeacherScores:
        """Score a group.

        Args:
            group: Group to score.
            support: Tokens to score in addition to the sampled ones. None is the cheapest.

        Raises:
            DeadlineError: Not scored within `timeout_s`, including the time spent waiting for the client's quota.
            WorkerLostError: The connection failed, or a replica died, in every attempt.
            AccessError: The service refused the token.
            VocabularyMismatchError, ContractError, EngineError: The service refused the group or failed on it. Not
                retried.
        """
        request = ScoringRequest(
            group=group, tokenizer=self._tokenizer, client=self._client, support=support
        ).to_bytes()
        body = await retry_until(
            lambda: self._send("POST", "/v1/score", request),
            max_retries=self._max_retries,
            timeout_s=self._timeout_s,
            failure=f"the teacher at {self.url} did not score a group of {group.num_tokens} tokens",
        )
        scores = scores_from_bytes(body)
        if (scores.uid, scores.attempt, len(scores.logprobs)) != (group.uid, group.attempt, group.num_tokens):
            raise EngineError(
                f"the teacher at {self.url} scored {len(scores.logprobs)} tokens of {scores.uid} attempt "
                f"{scores.attempt}; expected {group.num_tokens} of {group.uid} attempt {group.attempt}"
            )
        return scores

    async def _send(self, method: str, path: str, content: bytes | None = None) -> bytes:
        who = f"the teacher at {self.url}"
        try:
            response = await self._http.request(
                method, f"{self.url}{path}", content=content, headers={"Content-Type": MEDIA_TYPE} if content else {}
            )
        except httpx.ReadTimeout as error:
            raise DeadlineError(f"{who} did not answer in time") from error
        except httpx.HTTPError as error:
            raise WorkerLostError(f"{who} is not reachable: {type(error).__name__}: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise error_of(response.status_code, response.content, who=who)
        return response.content
