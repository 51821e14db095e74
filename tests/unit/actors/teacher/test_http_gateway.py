"""HTTP gateway and client of a teacher service, connected without a network: access, limits and errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from actors.teacher.http_gateway import http_application
from actors.teacher.quota import Activity
from rlad.config import RemoteTeacherConfig, TeacherHttpConfig
from rlad.contracts import RolloutGroup, TeacherScores
from rlad.errors import (
    AccessError,
    ContractError,
    DeadlineError,
    EngineError,
    RladError,
    VocabularyMismatchError,
    WorkerLostError,
)
from rlad.teacher.http_client import TeacherHttpClient, health_status, read_token, sends_token_in_clear
from rlad.teacher.wire_format import ScoringRequest, TeacherIdentity

URL = "http://teacher.example/kk"
TOKEN = "a-token-of-this-test"
IDENTITY = TeacherIdentity(
    teacher="model-1", tokenizer="vocabulary-1", engine="transformers", vocabulary=29, max_groups_per_client=2
)


class FakeReplicas:
    """Backend that first raises the given errors, then scores each token by its negated id once `release` is set."""

    def __init__(self, *errors: RladError, quota: int | None = None) -> None:
        self.errors = list(errors)
        self.activity = Activity(max_groups_per_client=quota)
        self.release = asyncio.Event()
        self.release.set()
        self.calls = 0

    async def identity(self) -> TeacherIdentity:
        if self.errors:
            raise self.errors.pop(0)
        return IDENTITY

    async def score(self, request: ScoringRequest) -> TeacherScores:
        self.calls += 1
        with self.activity.of(request.client):
            if self.errors:
                raise self.errors.pop(0)
            if request.tokenizer != IDENTITY.tokenizer:
                raise VocabularyMismatchError("another vocabulary")
            await self.release.wait()
        group = request.group
        return TeacherScores(
            uid=group.uid,
            attempt=group.attempt,
            teacher=IDENTITY.teacher,
            logprobs=-group.response_ids.astype(np.float32),
        )


def application(replicas: FakeReplicas, *, timeout_s: float = 5.0, max_request_bytes: int = 2000) -> FastAPI:
    return http_application(replicas, token=TOKEN, timeout_s=timeout_s, max_request_bytes=max_request_bytes)


def client_of(
    app: FastAPI,
    *,
    token: str = TOKEN,
    name: str = "run-1",
    tokenizer: str = "vocabulary-1",
    timeout_s: float = 5.0,
    max_retries: int = 0,
) -> TeacherHttpClient:
    return TeacherHttpClient(
        URL,
        token=TOKEN,
        client=name,
        tokenizer=tokenizer,
        timeout_s=timeout_s,
        max_retries=max_retries,
        transport=Prefixed(httpx.ASGITransport(app, root_path="/kk")),
    )


class Prefixed(httpx.AsyncBaseTransport):
    """Transport that strips the application's route prefix, as Serve does."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(path=request.url.path.removeprefix("/kk"))
        return await self._inner.handle_async_request(request)


@contextlib.asynccontextmanager
async def plain_http(app: FastAPI, *, token: str | None = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway", headers=headers
    ) as http:
        yield http


def make_group(num_tokens: int = 3) -> RolloutGroup:
    return RolloutGroup(
        uid="d:0:1",
        attempt=2,
        prompt_id="p",
        task="t",
        answer="a",
        temperature=1.0,
        prompt_ids=np.array([1, 2], np.int32),
        response_ids=np.arange(num_tokens, dtype=np.int32),
        response_offsets=np.array([0, num_tokens], np.int64),
        behaviour_logprobs=np.zeros(num_tokens, np.float32),
        policy_versions=np.zeros(num_tokens, np.int32),
        finish_reasons=np.zeros(1, np.uint8),
    )


async def test_metrics_count_requests_by_route_and_status() -> None:
    app = application(FakeReplicas())
    async with client_of(app) as client:
        await client.score(make_group(3))
        await client.score(make_group(4))
    async with plain_http(app, token="wrong") as http:
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/v1/teacher")).status_code == 401
        assert (await http.get("/somewhere/else")).status_code == 404
    async with plain_http(app) as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }

    def requests(route: str, status: str) -> float:
        return samples["rlad_teacher_requests_total", ("route", route), ("status", status)]

    assert requests("/v1/score", "200") == 2
    assert requests("/v1/teacher", "401") == 1
    assert requests("/metrics", "401") == 1
    assert requests("other", "404") == 1
    assert samples["rlad_teacher_request_seconds_count", ("route", "/v1/score")] == 2
    assert samples["rlad_teacher_scored_tokens_total",] == 7
    assert samples["rlad_teacher_requests_in_progress",] == 1  # this one


async def test_group_is_scored_with_the_right_token() -> None:
    async with client_of(application(FakeReplicas())) as client:
        assert await client.identity() == IDENTITY
        scores = await client.score(make_group())
    assert (scores.uid, scores.attempt, scores.teacher, scores.logprobs.tolist()) == (
        "d:0:1",
        2,
        "model-1",
        [0.0, -1.0, -2.0],
    )


@pytest.mark.parametrize("token", ["", "a-token-of-this-tesT", TOKEN + "x", TOKEN[:-1], "näh"])
async def test_wrong_token_is_refused_before_the_body_is_read(token: str) -> None:
    replicas = FakeReplicas()
    headers = {"Authorization": f"Bearer {token}".encode()}

    async def never_read() -> AsyncIterator[bytes]:
        pytest.fail("the body of an unauthorised request was read")
        yield b""

    async with plain_http(application(replicas), token=None) as http:
        for sent in (headers, {}, {"Authorization": f"Basic {TOKEN}"}):
            answers = [
                await http.get("/v1/teacher", headers=sent),
                await http.post("/v1/score", headers=sent, content=never_read()),
            ]
            for answer in answers:
                assert (answer.status_code, answer.json()["error"]) == (401, "AccessError")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert TOKEN not in answer.text
    assert replicas.calls == 0


async def test_only_health_and_documentation_need_no_token() -> None:
    app = application(FakeReplicas())
    async with plain_http(app, token=None) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/docs")).status_code == 200
        page = (await http.get("/openapi.json")).json()
        without_token = [
            path
            for path in page["paths"]
            if (await http.request("GET" if path != "/v1/score" else "POST", path)).status_code == 200
        ]
    assert without_token == ["/healthz"]
    assert page["paths"]["/v1/score"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "application/vnd.safetensors" in page["paths"]["/v1/score"]["post"]["requestBody"]["content"]


async def test_health_reports_the_state_of_the_replicas() -> None:
    async with plain_http(application(FakeReplicas(WorkerLostError("no replica"))), token=None) as http:
        answer = await http.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"error": "WorkerLostError", "message": "no replica"})


@pytest.mark.parametrize("declares_length", [True, False])
async def test_body_above_the_limit_is_refused_unread(declares_length: bool) -> None:
    replicas, sent = FakeReplicas(), 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1000
            yield bytes(1000)

    async with plain_http(application(replicas, max_request_bytes=2000)) as http:
        length = {"Content-Length": "1000000"} if declares_length else {}
        answer = await http.post("/v1/score", content=chunks(), headers=length)
    assert (answer.status_code, answer.json()["error"]) == (413, "ContractError")
    assert "exceeds 2000 bytes" in answer.json()["message"]
    assert sent <= (0 if declares_length else 3000)
    assert replicas.calls == 0


async def test_body_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    size = len(ScoringRequest(group=make_group(), tokenizer="vocabulary-1", client="run-1").to_bytes())
    async with client_of(application(FakeReplicas(), max_request_bytes=size)) as client:
        await client.score(make_group())
    async with client_of(application(FakeReplicas(), max_request_bytes=size - 1)) as client:
        with pytest.raises(ContractError, match=f"exceeds {size - 1} bytes"):
            await client.score(make_group())


async def test_invalid_body_is_refused() -> None:
    replicas = FakeReplicas()
    async with plain_http(application(replicas)) as http:
        answer = await http.post("/v1/score", content=b"\x80\x04K\x01.")
    assert (answer.status_code, answer.json()["error"], replicas.calls) == (422, "ContractError", 0)


async def test_client_above_its_quota_gets_429_and_retries() -> None:
    replicas = FakeReplicas(quota=2)
    replicas.release.clear()
    app = application(replicas)
    async with client_of(app) as client, client_of(app, name="run-2") as other, plain_http(app) as http:
        in_progress = [asyncio.create_task(client.score(make_group())) for _ in range(5)]
        async with asyncio.timeout(5):
            while replicas.activity.stats(cache_hits=0, cache_misses=0).refused_groups < 3:
                await asyncio.sleep(0)
        answer = await http.post(
            "/v1/score", content=ScoringRequest(group=make_group(), tokenizer="vocabulary-1", client="run-1").to_bytes()
        )
        assert (answer.status_code, answer.json()["error"], answer.headers["Retry-After"]) == (429, "QuotaError", "1")
        others = asyncio.create_task(other.score(make_group()))
        async with asyncio.timeout(5):
            while replicas.activity.stats(cache_hits=0, cache_misses=0).ongoing != {"run-1": 2, "run-2": 1}:
                await asyncio.sleep(0)
        replicas.release.set()
        assert all(scores.uid == "d:0:1" for scores in await asyncio.gather(*in_progress, others))


async def test_waiting_for_quota_ends_at_the_deadline() -> None:
    replicas = FakeReplicas(quota=1)
    replicas.release.clear()
    app = application(replicas)
    async with client_of(app) as client, client_of(app, timeout_s=0.3) as hasty:
        holding = asyncio.create_task(client.score(make_group()))
        async with asyncio.timeout(5):
            while not replicas.calls:
                await asyncio.sleep(0)
        with pytest.raises(DeadlineError, match="did not score a group of 3 tokens within 0.3 s"):
            await hasty.score(make_group())
        replicas.release.set()
        await holding


async def test_lost_replica_is_retried_and_other_failures_are_not() -> None:
    lost = FakeReplicas(WorkerLostError("a replica died"))
    async with client_of(application(lost), max_retries=1) as client:
        assert len((await client.score(make_group())).logprobs) == 3
    assert lost.calls == 2
    broken = FakeReplicas(EngineError("out of memory"))
    async with client_of(application(broken), max_retries=1) as client:
        with pytest.raises(EngineError, match="out of memory"):
            await client.score(make_group())
    assert broken.calls == 1


async def test_other_vocabulary_is_refused() -> None:
    async with client_of(application(FakeReplicas()), tokenizer="vocabulary-2") as client:
        with pytest.raises(VocabularyMismatchError, match="another vocabulary"):
            await client.score(make_group())


async def test_slow_replicas_raise_a_deadline_error() -> None:
    replicas = FakeReplicas()
    replicas.release.clear()
    async with client_of(application(replicas, timeout_s=0.05)) as client:
        with pytest.raises(DeadlineError, match=r"the teacher did not score the group within 0.05 s"):
            await client.score(make_group())


async def test_scores_of_another_group_are_rejected() -> None:
    class Confused(FakeReplicas):
        async def score(self, request: ScoringRequest) -> TeacherScores:
            return TeacherScores(uid="d:0:9", attempt=2, teacher="model-1", logprobs=np.zeros(3, np.float32))

    async with client_of(application(Confused())) as client:
        with pytest.raises(EngineError, match="scored 3 tokens of d:0:9 attempt 2; expected 3 of d:0:1 attempt 2"):
            await client.score(make_group())


async def test_unreachable_service_is_worker_lost_and_has_no_health() -> None:
    async with TeacherHttpClient(
        "http://127.0.0.1:9/kk", token=TOKEN, client="c", tokenizer="t", max_retries=0
    ) as client:
        with pytest.raises(
            WorkerLostError, match="the teacher at http://127.0.0.1:9/kk is not reachable: ConnectError"
        ):
            await client.identity()
    assert await health_status("http://127.0.0.1:9/kk") is None


def test_token_file_takes_precedence_over_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-of-the-file\n")
    monkeypatch.setenv("RLAD_TEACHER_TOKEN", f"{TOKEN}-of-the-variable")
    monkeypatch.setenv("OTHER", f"{TOKEN}-of-the-other")
    assert read_token(TeacherHttpConfig(token_file=str(file))) == f"{TOKEN}-of-the-file"
    assert read_token(RemoteTeacherConfig(url=URL)) == f"{TOKEN}-of-the-variable"
    assert read_token(RemoteTeacherConfig(url=URL, token_env="OTHER")) == f"{TOKEN}-of-the-other"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "cannot read the token .*: FileNotFoundError"),
        (lambda file: file.write_bytes(b"\xff" * 40), "cannot read the token .*: UnicodeDecodeError"),
        (
            lambda file: file.write_text("short-secret"),
            "does not hold a valid token: expected at least 16 printable ASCII characters",
        ),
        (lambda file: file.write_text("two words that are long enough"), "does not hold a valid token"),
    ],
)
def test_invalid_token_is_refused_and_not_repeated_in_the_error(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    spoil(file)
    with pytest.raises(AccessError, match=message) as refused:
        read_token(TeacherHttpConfig(token_file=str(file)))
    assert "secret" not in str(refused.value)
    assert "words" not in str(refused.value)


def test_missing_token_error_names_both_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLAD_TEACHER_TOKEN", raising=False)
    with pytest.raises(AccessError, match="set RLAD_TEACHER_TOKEN, or `token_file`"):
        read_token(RemoteTeacherConfig(url=URL))


@pytest.mark.parametrize(
    ("url", "in_clear"),
    [
        ("https://host/kk", False),
        ("http://127.0.0.1:8000/kk", False),
        ("http://localhost/kk", False),
        ("http://host:8000/kk", True),
    ],
)
def test_unencrypted_transfer_of_a_token_is_detected(url: str, in_clear: bool) -> None:
    assert sends_token_in_clear(url) == in_clear
