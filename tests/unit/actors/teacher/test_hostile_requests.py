"""Malformed, oversized and slow requests to a teacher: each gets a documented answer, and none costs much."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save

from actors.teacher.http_gateway import http_application
from rlad.contracts import TeacherScores
from rlad.errors import ScoringRefusedError
from rlad.teacher.limits import MAX_RESPONSES, require_scorable
from rlad.teacher.wire_format import STATUS, ScoringRequest, TeacherIdentity
from rlad.testing import make_group

TOKEN = "a-token-of-this-test"
VOCABULARY = 29
ANSWERS = {200, 413, *STATUS.values()}
FIELDS: dict[str, Any] = {
    "uid": "d:0:1",
    "attempt": 0,
    "temperature": 1.0,
    "support": None,
    "tokenizer": "vocabulary-1",
    "client": "run-1",
}


class CheckingReplicas:
    """Backend that checks requests as a replica does, and answers after `release` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.release.set()
        self.identity_calls = 0

    async def identity(self) -> TeacherIdentity:
        self.identity_calls += 1
        await self.release.wait()
        return TeacherIdentity(
            teacher="model-1", tokenizer="t", engine="transformers", vocabulary=VOCABULARY, max_groups_per_client=0
        )

    async def score(self, request: ScoringRequest) -> TeacherScores:
        group = request.group
        require_scorable(group, request.support, vocabulary=VOCABULARY)
        return TeacherScores(
            uid=group.uid, attempt=group.attempt, teacher="model-1", logprobs=np.zeros(group.num_tokens, np.float32)
        )


def application(replicas: CheckingReplicas | None = None, **limits: Any) -> FastAPI:
    return http_application(
        replicas or CheckingReplicas(), token=TOKEN, timeout_s=5.0, **{"max_request_bytes": 16 << 20, **limits}
    )


async def post(app: FastAPI, content: Any, **headers: str) -> httpx.Response:
    sent = {"Authorization": f"Bearer {TOKEN}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        return await http.post("/v1/score", content=content, headers=sent)


def body(columns: dict[str, Any], **fields: Any) -> bytes:
    packed: bytes = save(columns, metadata={"words": json.dumps({**FIELDS, **fields})})
    return packed


def group_body(lengths: list[int], *, first_token: int = 1, **fields: Any) -> bytes:
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    tokens = np.full(int(offsets[-1]), first_token, np.int32)
    return body({"prompt_ids": np.array([1], np.int32), "response_ids": tokens, "response_offsets": offsets}, **fields)


def with_scalar(name: str) -> bytes:
    columns = {"prompt_ids": np.array([1], np.int32), "response_ids": np.array([1], np.int32)}
    columns["response_offsets"] = np.array([0, 1], np.int64)
    return body({**columns, name: np.array(1, columns[name].dtype)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((with_scalar(name), "one-dimensional") for name in ("prompt_ids", "response_ids", "response_offsets")),
        (group_body([2], first_token=VOCABULARY), "the teacher's vocabulary has ids from 0 to 28"),
        (group_body([2], first_token=-1), "token ids from -1 to -1"),
        (group_body([2], support=VOCABULARY + 1), "from 1 to 29"),
        (group_body([0], support=10**30), "from 1 to 29"),
        (group_body([1] * (MAX_RESPONSES + 1)), "has 4097 responses; a request may have 4096"),
        (group_body([1], support=-1), "support"),
    ],
)
async def test_impossible_request_is_refused_with_422(content: bytes, message: str) -> None:
    answer = await post(application(), content)
    assert (answer.status_code, answer.json()["error"]) == (422, "ContractError"), answer.text
    assert message in answer.json()["message"]


async def test_millions_of_tiny_responses_are_refused_at_once() -> None:
    content = group_body([1] * 1_300_000)
    start = time.perf_counter()
    assert (await post(application(), content)).status_code == 422
    assert time.perf_counter() - start < 10


def test_full_support_is_refused_before_its_scores_are_allocated() -> None:
    group = make_group([[1] * 100_000])
    require_scorable(group, None, vocabulary=150_000)
    with pytest.raises(ScoringRefusedError, match="take 114441 MiB; the limit is 8192 MiB"):
        require_scorable(group, "full", vocabulary=150_000)


async def test_length_with_thousands_of_digits_is_refused_unread() -> None:
    async def never_read() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    for length in ("9" * 5000, "1" + "0" * 18, str((16 << 20) + 1)):
        assert (await post(application(), never_read(), Content_Length=length)).status_code == 413
    content = group_body([2])
    answer = await post(application(), content, Content_Length="0" * 5000 + str(len(content)))
    assert answer.status_code == 200


async def test_body_that_trickles_in_is_given_up() -> None:
    never = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield b"x"
        await never.wait()

    answer = await post(application(upload_timeout_s=0.05), trickle())
    assert (answer.status_code, answer.json()["error"]) == (504, "DeadlineError")
    assert "receive the whole request within 0.05 s" in answer.json()["message"]


async def test_health_has_a_deadline_and_any_number_of_callers_cost_one_call() -> None:
    replicas = CheckingReplicas()
    replicas.release.clear()
    app = application(replicas, health_timeout_s=0.05)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        answers = await asyncio.gather(*(http.get("/healthz") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {504}
        assert replicas.identity_calls == 1
        replicas.release.set()
        assert (await http.get("/healthz")).status_code == 200


_COLUMNS = st.dictionaries(
    st.sampled_from(["prompt_ids", "response_ids", "response_offsets", "other"]),
    arrays.arrays(
        st.sampled_from([np.int32, np.int64, np.float32, np.uint8]),
        arrays.array_shapes(min_dims=0, max_dims=2, max_side=4),
    ),
    min_size=1,
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_BODIES = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda columns, name, value: body(columns, **{name: value}), _COLUMNS, st.sampled_from([*FIELDS, "x"]), _JSON
    ),
    st.builds(
        lambda offsets, support: body(
            {
                "prompt_ids": np.array([1], np.int32),
                "response_ids": np.array([1, 2, 3], np.int32),
                "response_offsets": np.array(offsets, np.int64),
            },
            support=support,
        ),
        st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4),
        st.none() | st.integers(-2, 40) | st.just("full"),
    ),
    st.builds(
        lambda content, place, value: content[:place] + bytes([value]) + content[place + 1 :],
        st.just(group_body([1, 2])),
        st.integers(0, 300),
        st.integers(0, 255),
    ),
)


@settings(max_examples=60, deadline=None)
@given(_BODIES)
def test_any_body_gets_a_documented_answer(content: bytes) -> None:
    answer = asyncio.run(post(application(), content))
    assert answer.status_code in ANSWERS
    if answer.status_code != 200:
        assert answer.json().keys() == {"error", "message"}
