"""Tests of the teacher service in memory, through the real client."""

from __future__ import annotations

import pytest

from rlad.contracts import TeacherScores
from rlad.errors import AccessError, QuotaError
from rlad.teacher.wire_format import ScoringRequest
from rlad.testing import FakeTeacherService, make_group, make_teacher_scores


async def test_rule_scores_the_tokens_of_the_request() -> None:
    def token_id_as_score(request: ScoringRequest) -> TeacherScores:
        return make_teacher_scores(request.group, [-float(token) for token in request.group.response_ids])

    service = FakeTeacherService(token_id_as_score)
    async with service.client() as teacher:
        scores = await teacher.score(make_group([[4, 5], [6]], uid="d:0:1", attempt=2))
    assert scores.logprobs.tolist() == [-4, -5, -6]
    assert [(request.group.uid, request.group.attempt) for request in service.requests] == [("d:0:1", 2)]


async def test_identity_is_that_of_the_arguments() -> None:
    async with FakeTeacherService(tokenizer="abc", vocabulary=7).client() as teacher:
        identity = await teacher.identity()
    assert (identity.tokenizer, identity.vocabulary) == ("abc", 7)


async def test_wrong_token_is_refused() -> None:
    service = FakeTeacherService()
    async with service.client(token="another-token-0123") as teacher:
        with pytest.raises(AccessError, match="token is missing or wrong"):
            await teacher.score(make_group([[4]]))
    assert service.requests == []


async def test_error_of_the_rule_reaches_the_client() -> None:
    def refuse(request: ScoringRequest) -> TeacherScores:
        raise AccessError(f"{request.client} may not score here")

    async with FakeTeacherService(refuse).client() as teacher:
        with pytest.raises(AccessError, match="test-client may not score here"):
            await teacher.score(make_group([[4]]))


async def test_client_retries_a_full_service() -> None:
    attempts = 0

    def full_at_first(request: ScoringRequest) -> TeacherScores:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise QuotaError("the service is full")
        return make_teacher_scores(request.group)

    async with FakeTeacherService(full_at_first).client(max_retries=1) as teacher:
        scores = await teacher.score(make_group([[4]]))
    assert (attempts, scores.logprobs.tolist()) == (2, [-1])
