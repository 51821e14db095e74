"""Teacher service on a Ray cluster: by handle, over HTTP, under quotas, and in two runs while a replica is killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner

from actors.teacher.client import Teacher, TeacherClient
from actors.teacher.deployment import attach_teacher
from actors.teacher.remote import attach_remote_teacher
from pipelines import teacher_service
from pipelines.cli.teacher import app
from pipelines.pretrain import ensure_models
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.config import RemoteTeacherConfig, ServiceTeacherConfig
from rlad.contracts import RolloutGroup, TeacherScores
from rlad.data.chat import tokenizer_fingerprint
from rlad.errors import AccessError, ContractError, PlanError, RladError, VocabularyMismatchError
from rlad.ledger import Ledger
from rlad.models.locations import resolve_model
from rlad.teacher.http_client import TeacherHttpClient

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
NAME = "kk-shared"
TOKEN = "0123456789abcdef0123456789abcdef"
QUOTA = 6
START_TIMEOUT_S = 360.0
RUN_TIMEOUT_S = 900.0
STEPS = 15
SHORT = [
    f"training.steps={STEPS}",
    "training.prompts_per_step=4",
    "evaluation.every_steps=0",
    "evaluation.prompts.count=4",
    "checkpoints.every_steps=4",
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    context = ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def tokenizer() -> str:
    ensure_models(["starter:kk-smoke/student", "starter:kk-smoke/teacher"], Console(quiet=True))
    return tokenizer_fingerprint(resolve_model("starter:kk-smoke/student"))


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture(scope="module")
def url(address: str, tokenizer: str, token_file: Path) -> str:
    """URL of the running service."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    overrides = [
        f"name={NAME}",
        "replicas=2",
        "cpus_per_replica=0.5",
        f"max_groups_per_client={QUOTA}",
        "cache_tokens=0",  # every group requires a forward pass, so that a killed replica loses groups
        f"http.port={port}",
        f"http.token_file={token_file}",
        "http.max_request_mib=1",
    ]
    service = teacher_service.read_service(ROOT / "configs" / "teachers" / "kk_smoke_cpu.yaml", overrides)
    state = teacher_service.deploy(service, address=address, timeout_s=START_TIMEOUT_S)
    assert (state.status, state.running, state.url) == ("RUNNING", 2, f"http://127.0.0.1:{port}/{NAME}")
    return str(state.url)


@pytest.fixture
async def by_handle(url: str, tokenizer: str) -> TeacherClient:
    client, _ = await attach_teacher(
        ServiceTeacherConfig(service=NAME),
        client="handle",
        tokenizer_fingerprint=tokenizer,
        start_timeout_s=START_TIMEOUT_S,
    )
    return client


def http_client(
    url: str, tokenizer: str, *, client: str = "http", token: str = TOKEN, timeout_s: float = 60.0
) -> TeacherHttpClient:
    return TeacherHttpClient(url, token=token, client=client, tokenizer=tokenizer, timeout_s=timeout_s)


def make_group(seed: int, *, lengths: tuple[int, ...] = (3, 41, 0, 1, 88, 17)) -> RolloutGroup:
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    num_tokens = int(offsets[-1])
    return RolloutGroup(
        uid=f"d:0:{seed}",
        attempt=1,
        prompt_id=str(seed),
        task="t",
        answer="T",
        temperature=1.0,
        prompt_ids=random.integers(2, 20, 12, dtype=np.int32),
        response_ids=random.integers(2, 20, num_tokens, dtype=np.int32),
        response_offsets=offsets,
        behaviour_logprobs=np.zeros(num_tokens, np.float32),
        policy_versions=np.zeros(num_tokens, np.int32),
        finish_reasons=np.zeros(len(lengths), np.uint8),
    )


async def score(teacher: Teacher, group: RolloutGroup, support: int | None = None) -> TeacherScores:
    return TeacherScores.from_columns(
        await (await teacher.score(ray.put(group.to_columns()), num_tokens=group.num_tokens, support=support))
    )


def assert_equal_to_the_bit(one: TeacherScores, other: TeacherScores) -> None:
    columns, others = one.to_columns(), other.to_columns()
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            assert (column.dtype, column.tobytes()) == (others[name].dtype, others[name].tobytes()), name
        else:
            assert column == others[name], name


async def test_http_handle_and_courier_give_the_same_bits(
    by_handle: TeacherClient, url: str, tokenizer: str, token_file: Path
) -> None:
    remote = RemoteTeacherConfig(url=url, token_file=str(token_file))
    by_courier, identity = await attach_remote_teacher(
        remote, client="courier", tokenizer_fingerprint=tokenizer, label_selector={}
    )
    assert identity.teacher == by_handle.teacher == by_courier.teacher
    assert identity.max_groups_per_client == QUOTA
    async with http_client(url, tokenizer) as client:
        for seed, support in ((0, None), (1, 4)):
            expected = await score(by_handle, make_group(seed), support)
            assert_equal_to_the_bit(await client.score(make_group(seed), support), expected)
            assert_equal_to_the_bit(await score(by_courier, make_group(seed), support), expected)
    kept = await by_courier.score(ray.put(make_group(2, lengths=(450,) * 60).to_columns()), num_tokens=27_000)
    ray.kill(by_courier.courier, no_restart=False)
    assert len((await kept)["logprobs"]) == 27_000, "scores outlive the courier that fetched them"
    assert_equal_to_the_bit(await score(by_courier, make_group(3)), await score(by_handle, make_group(3)))
    by_courier.close()


async def test_invalid_tokens_vocabularies_bodies_and_names_are_refused(
    url: str, tokenizer: str, token_file: Path
) -> None:
    async with http_client(url, tokenizer, token=TOKEN[::-1]) as stranger:
        with pytest.raises(AccessError, match="the token is missing or wrong"):
            await stranger.identity()
        with pytest.raises(AccessError):
            await stranger.score(make_group(0))
    async with http_client(url, "0123456789abcdef") as other, http_client(url, tokenizer) as client:
        with pytest.raises(VocabularyMismatchError, match="use a teacher and a student with one vocabulary"):
            await other.score(make_group(0))
        unknown = RolloutGroup(**{**make_group(0).to_columns(), "prompt_ids": np.array([1, 99_999], np.int32)})
        with pytest.raises(
            ContractError, match="token ids from 1 to 99999; the teacher's vocabulary has ids from 0 to"
        ):
            await client.score(unknown)
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False) as http:
        large, odd = [await http.post(f"{url}/v1/score", content=body) for body in (bytes(2 << 20), b"\x80\x04K\x01.")]
        assert (large.status_code, odd.status_code) == (413, 422)
        assert odd.json()["error"] == "ContractError"
        assert (await http.get(f"{url}/openapi.json")).json()["paths"].keys() == {
            "/healthz",
            "/v1/teacher",
            "/v1/score",
        }
    with pytest.raises(VocabularyMismatchError, match="their token ids differ in meaning"):
        await attach_teacher(
            ServiceTeacherConfig(service=NAME),
            client="c",
            tokenizer_fingerprint="other",
            start_timeout_s=START_TIMEOUT_S,
        )
    with pytest.raises(PlanError, match=f"no teacher service 'kk-shard' on this Ray cluster \\(available: {NAME}\\)"):
        await attach_teacher(
            ServiceTeacherConfig(service="kk-shard"),
            client="c",
            tokenizer_fingerprint=tokenizer,
            start_timeout_s=START_TIMEOUT_S,
        )
    with pytest.raises(PlanError, match="the configuration expects 0123"):
        await attach_remote_teacher(
            RemoteTeacherConfig(url=url, token_file=str(token_file), fingerprint="0123"),
            client="c",
            tokenizer_fingerprint=tokenizer,
            label_selector={},
        )


async def test_client_at_its_quota_does_not_delay_another_client(
    by_handle: TeacherClient, url: str, tokenizer: str
) -> None:
    before = await by_handle.stats()
    async with (
        http_client(url, tokenizer, client="greedy") as greedy,
        http_client(url, tokenizer, client="modest") as modest,
    ):
        flood = [asyncio.create_task(greedy.score(make_group(100 + seed, lengths=(200,) * 8))) for seed in range(60)]
        most = 0
        async with asyncio.timeout(60):
            while not (now := await by_handle.stats()).refused_groups > before.refused_groups:
                most = max(most, now.ongoing["greedy"])
        expected = await score(by_handle, make_group(1))
        assert_equal_to_the_bit(await modest.score(make_group(1)), expected)
        waiting = sum(not task.done() for task in flood)
        assert waiting > 2 * QUOTA, "the modest client did not wait for earlier requests of the greedy one"
        assert max(most, now.ongoing["greedy"]) <= 2 * QUOTA
        assert all(len(scores.logprobs) == 1600 for scores in await asyncio.gather(*flood)), (
            "refused groups are scored later"
        )


def replicas() -> list[psutil.Process]:
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if f"ServeReplica:{NAME}:SharedTeacher" in " ".join(each.info["cmdline"] or [])
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedRun:
    """Run in a process of its own."""

    directory: RunDirectory
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        if self.is_alive:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)

    def log_tail(self) -> str:
        return self.log.read_text()[-3000:]


def start_run(path: Path, address: str, *overrides: str) -> StartedRun:
    log, smoke = path.with_suffix(".log"), str(ROOT / "configs" / "smoke_cpu.yaml")
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "-v",
        "run",
        smoke,
        *SHORT,
        *overrides,
        "--address",
        address,
        "--run-dir",
        str(path),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT)
    return StartedRun(directory=RunDirectory(path), process=process, log=log)


def wait_for_first_steps(runs: list[StartedRun]) -> None:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while not all(read_json_lines(run.directory.metrics) for run in runs):
        for run in runs:
            assert run.process.poll() in (None, 0), f"a run ended before its first step:\n{run.log_tail()}"
        assert time.monotonic() < deadline, "\n".join(["no first step in time:", *(run.log_tail() for run in runs)])
        time.sleep(0.2)


async def kill_a_busy_replica(tokenizer: str, runs: list[StartedRun]) -> None:
    """Keep both replicas busy, so that groups of the runs wait in them, and kill a replica once such a group waits."""
    config = ServiceTeacherConfig(service=NAME)
    client, _ = await attach_teacher(
        config, client="flood", tokenizer_fingerprint=tokenizer, start_timeout_s=START_TIMEOUT_S
    )
    seeds, is_over = itertools.count(500), asyncio.Event()

    async def keep_busy() -> None:
        while not is_over.is_set():
            group = make_group(next(seeds), lengths=(200,) * 8)
            assert len((await score(client, group)).logprobs) == group.num_tokens

    flood = [asyncio.create_task(keep_busy()) for _ in range(2 * QUOTA)]
    async with asyncio.timeout(RUN_TIMEOUT_S):
        while not (await client.stats()).ongoing.keys() - {"flood"}:
            assert any(run.is_alive for run in runs), "the runs ended before one of their groups was seen in progress"
    replicas()[0].send_signal(signal.SIGKILL)
    is_over.set()
    await asyncio.gather(*flood)


@pytest.mark.slow
def test_two_runs_share_a_service_and_survive_a_killed_replica(
    address: str, url: str, tokenizer: str, token_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"service": [f"teacher.service={NAME}"], "url": [f"teacher.url={url}", f"teacher.token_file={token_file}"]}
    victims = {each.pid for each in replicas()}
    with ExitStack() as ending:
        runs = [start_run(tmp_path / kind, address, *overrides) for kind, overrides in names.items()]
        for run in runs:
            ending.callback(run.end)
        wait_for_first_steps(runs)
        with caplog.at_level(logging.WARNING, logger="rlad.teacher.retries"):
            asyncio.run(kill_a_busy_replica(tokenizer, runs))
        assert [run.process.wait(timeout=RUN_TIMEOUT_S) for run in runs] == [0, 0], "\n".join(
            run.log_tail() for run in runs
        )
    assert "as it raised WorkerLostError" in caplog.text, "groups of the killed replica were retried"
    for run in runs:
        assert len(read_json_lines(run.directory.metrics)) == STEPS
        assert (run.directory.export / "model.safetensors").is_file()
        counts = Ledger(run.directory.ledger, read_only=True).counts()
        assert (counts.lost, counts.duplicated, counts.trained_steps) == (0, 0, STEPS)
    taught = [json.loads(run.directory.teachers.read_text()) for run in runs]
    deadline = time.monotonic() + START_TIMEOUT_S
    while (state := teacher_service.state(NAME, address=address)).running < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert (state.status, state.running) == ("RUNNING", 2), (
        "the killed replica is replaced, and the runs leave the service unchanged"
    )
    assert state.identity is not None
    assert taught == [{"teacher": state.identity.teacher}] * 2
    assert len({each.pid for each in replicas()} - victims) == 1, "no other replica was replaced"


def test_commands_show_and_delete_a_service(address: str, url: str, tokenizer: str) -> None:
    def rlad(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--address", address], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    status = json.loads(rlad("status", "--json"))
    assert (status["name"], status["status"], status["replicas"]["RUNNING"], status["url"]) == (NAME, "RUNNING", 2, url)
    assert (status["identity"]["max_groups_per_client"], status["stats"]["ongoing"]) == (QUOTA, {})
    assert status["stats"]["num_groups"] > 0
    assert [each["name"] for each in json.loads(rlad("list", "--json"))] == [NAME]
    assert f"`teacher: {{service: {NAME}}}`" in rlad("status", NAME)
    assert TOKEN not in rlad("status", NAME)
    with pytest.raises(PlanError, match=f"no teacher service 'other' on this Ray cluster \\(available: {NAME}\\)"):
        rlad("delete", "other")
    hasty = ServiceTeacherConfig(service=NAME, timeout_s=5, max_retries=0)
    client, _ = asyncio.run(
        attach_teacher(hasty, client="left", tokenizer_fingerprint=tokenizer, start_timeout_s=START_TIMEOUT_S)
    )
    assert rlad("delete", NAME) == f"deleted {NAME}\n"
    assert json.loads(rlad("list", "--json")) == []
    assert replicas() == []
    with pytest.raises(RladError, match=f"teacher '{NAME}'"):
        asyncio.run(score(client, make_group(0)))
