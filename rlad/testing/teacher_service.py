"""Teacher service in memory, for tests of code that scores groups over HTTP."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import httpx

from rlad.contracts import TeacherScores
from rlad.errors import AccessError, RladError
from rlad.teacher.http_client import TeacherHttpClient
from rlad.teacher.limits import require_scorable
from rlad.teacher.wire_format import (
    MEDIA_TYPE,
    ScoringRequest,
    TeacherIdentity,
    problem_of,
    scores_to_bytes,
)
from rlad.testing.records import make_teacher_scores

ScoringRule = Callable[[ScoringRequest], TeacherScores]
"""Scores of a request. An `RladError` that it raises reaches the client as over a network."""


class FakeTeacherService:
    """Teacher service that answers clients in this process, in the wire format of the real one.

    service = FakeTeacherService(lambda request: make_teacher_scores(request.group, -0.5))
    async with service.client() as teacher:
        scores = await teacher.score(make_group([[4, 5]]))

    Attributes:
        requests: scoring requests received, in order, the failed ones included.
    """

    def __init__(
        self,
        rule: ScoringRule | None = None,
        *,
        token: str = "test-token-0123456789",
        tokenizer: str = "test-tokenizer",
        vocabulary: int = 1000,
    ) -> None:
        """
        Args:
            rule: scores of a request; by default -1 nat for every token.
            token: bearer token that clients must send.
            tokenizer: fingerprint of the teacher's tokenizer.
            vocabulary: number of entries of the teacher's output layer.
        """
        self._rule = rule or (lambda request: make_teacher_scores(request.group))
        self._token = token
        self._identity = TeacherIdentity(
            teacher="test-teacher",
            tokenizer=tokenizer,
            engine="transformers",
            vocabulary=vocabulary,
            max_groups_per_client=0,
        )
        self.requests: list[ScoringRequest] = []

    def client(self, *, token: str | None = None, timeout_s: float = 10.0, max_retries: int = 0) -> TeacherHttpClient:
        """Return a client that is connected to this service.

        Args:
            token: token that the client sends; by default the right one.
            timeout_s: deadline of scoring one group, in seconds.
            max_retries: number of retries after a lost connection or replica.
        """
        return TeacherHttpClient(
            "http://teacher.test",
            token=self._token if token is None else token,
            client="test-client",
            tokenizer=self._identity.tokenizer,
            timeout_s=timeout_s,
            max_retries=max_retries,
            transport=self.transport(),
        )

    def transport(self) -> httpx.MockTransport:
        """Return a transport for an httpx client of one's own."""
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        try:
            if request.headers.get("Authorization") != f"Bearer {self._token}":
                raise AccessError("the token is missing or wrong: send `Authorization: Bearer TOKEN`")
            if (request.method, request.url.path) == ("GET", "/v1/teacher"):
                return httpx.Response(200, json=dataclasses.asdict(self._identity))
            if (request.method, request.url.path) == ("POST", "/v1/score"):
                scoring = ScoringRequest.from_bytes(request.content)
                self.requests.append(scoring)
                require_scorable(scoring.group, scoring.support, vocabulary=self._identity.vocabulary)
                body = scores_to_bytes(self._rule(scoring))
                return httpx.Response(200, content=body, headers={"Content-Type": MEDIA_TYPE})
        except RladError as error:
            status, problem = problem_of(error)
            return httpx.Response(status, json=json.loads(problem.model_dump_json()))
        return httpx.Response(404)
