"""Tests of the verifier pool on a local Ray, with real worker processes that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from transformers import AutoTokenizer

from actors.verifier.pool import VerifierPool
from rlad.config import VerifierPoolConfig
from rlad.contracts import Outcome, RolloutGroup
from rlad.errors import ConfigError, PoolExhaustedError
from rlad.testing import make_group
from rlad.verifiers import Verdict, build_verifier

from .stuck_verifier import StuckVerifierConfig

COMPACT = build_verifier({"name": "knights_knaves", "form": "compact"})


GroupOf = Callable[..., RolloutGroup]


@pytest.fixture(scope="module")
def group_of(make_model: Callable[..., Path]) -> GroupOf:
    tokenizer = AutoTokenizer.from_pretrained(make_model())

    def group_of(
        texts: list[str],
        *,
        task: str = "compact",
        answer: str = "TF",
        truncated: tuple[int, ...] = (),
        uid: str = "d:0:0",
    ) -> RolloutGroup:
        responses = [tokenizer(text)["input_ids"] for text in texts]
        return make_group(responses, uid=uid, attempt=2, task=task, answer=answer, truncated=truncated)

    return group_of


def make_pool(
    make_model: Callable[..., Path], *, timeout_s: float = 5.0, workers: int = 1, processes: int = 1
) -> VerifierPool:
    config = VerifierPoolConfig(
        workers=workers, processes_per_worker=processes, cpus_per_worker=0.5, timeout_s=timeout_s
    )
    verifiers: Any = {"compact": {"name": "knights_knaves", "form": "compact"}, "stuck": StuckVerifierConfig()}
    return VerifierPool(config, verifiers, tokenizer_path=str(make_model()), start_timeout_s=60)


async def test_pool_gives_the_verdicts_of_the_verifier(make_model: Callable[..., Path], group_of: GroupOf) -> None:
    pool = make_pool(make_model, workers=2, processes=2)
    # The end-of-sequence token is not part of the text. A response may be empty. A truncated response earns nothing,
    # even if it contains the answer.
    texts = ["TT:TFxTF=TF$", "TF=FT$", "", "TFTF", "T=TF", "TF=TF$"]
    await pool.start()
    try:
        groups = [group_of(texts, truncated=(4,), uid=f"d:0:{index}") for index in range(12)]
        judged = await asyncio.gather(
            *(pool.verify(ray.put(group.to_columns()), num_tokens=group.num_tokens) for group in groups)
        )
        for group, verified in zip(groups, judged, strict=True):
            verdicts = verified.verdicts
            assert (verdicts.uid, verdicts.attempt) == (group.uid, 2)
            expected = [COMPACT.verify(text.replace("$", ""), "TF") for text in texts]
            expected[4] = Verdict(reward=0.0, outcome=Outcome.UNPARSEABLE)
            assert verdicts.rewards.tolist() == [verdict.reward for verdict in expected] == [1, 0, 0, 0, 0, 1]
            assert verdicts.outcomes.tolist() == [verdict.outcome for verdict in expected]
            assert (verified.rewards, verified.outcomes) == (
                tuple(verdicts.rewards.tolist()),
                tuple(verdicts.outcomes.tolist()),
            )
        stats = pool.stats()
        assert (stats.num_groups, stats.processes) == (12, 4)
        assert stats.outcomes == {Outcome.CORRECT: 24, Outcome.WRONG: 12, Outcome.UNPARSEABLE: 36}
        assert 0 < stats.busy_s == pytest.approx(sum(verified.elapsed_s for verified in judged))
    finally:
        await pool.close()


async def test_texts_and_answers_are_returned_only_on_request(
    make_model: Callable[..., Path], group_of: GroupOf
) -> None:
    pool = make_pool(make_model)
    # A response that is unparseable or truncated has no answer for a majority vote.
    group = group_of(["T=TF$", "F=FT$", "F=FTT$", "TF=TF", "TT"], truncated=(3,))
    await pool.start()
    try:
        ref = ray.put(group.to_columns())
        without_texts = await pool.verify(ref, num_tokens=group.num_tokens)
        with_texts = await pool.verify(ref, num_tokens=group.num_tokens, with_texts=True)
        assert (without_texts.texts, without_texts.answers) == (None, None)
        assert with_texts.answers == ("TF", "FT", None, None, None)
        assert with_texts.texts is not None
        assert [text.replace(" ", "") for text in with_texts.texts] == ["T=TF", "F=FT", "F=FTT", "TF=TF", "TT"]
        assert (with_texts.rewards, with_texts.outcomes) == (without_texts.rewards, without_texts.outcomes)
        unanswered = group_of(["T"], task="stuck", answer="/dev/null")
        assert (await pool.verify(ray.put(unanswered.to_columns()), num_tokens=1, with_texts=True)).answers is None
    finally:
        await pool.close()


async def test_stuck_verifier_times_out_and_the_next_responses_are_judged(
    make_model: Callable[..., Path], group_of: GroupOf, tmp_path: Path
) -> None:
    pool = make_pool(make_model, timeout_s=0.5)
    note = tmp_path / "pid"
    await pool.start()
    try:
        group = group_of(["T", "F", "TT"], task="stuck", answer=str(note))
        judged = await pool.verify(ray.put(group.to_columns()), num_tokens=group.num_tokens)
        assert judged.outcomes == (Outcome.CORRECT, Outcome.TIMEOUT, Outcome.CORRECT)
        assert judged.rewards == (1.0, 0.0, 1.0)
        assert not psutil.pid_exists(int(note.read_text()))
    finally:
        await pool.close()


async def test_group_of_a_killed_worker_is_judged_by_its_replacement(
    make_model: Callable[..., Path], group_of: GroupOf, tmp_path: Path
) -> None:
    pool = make_pool(make_model, timeout_s=3.0)
    note = tmp_path / "pid"
    await pool.start()
    try:
        group = group_of(["F", "T"], task="stuck", answer=str(note))
        verifying = asyncio.create_task(pool.verify(ray.put(group.to_columns()), num_tokens=group.num_tokens))
        stuck = await asyncio.to_thread(read_pid, note)
        note.unlink()
        os.kill(psutil.Process(stuck).ppid(), signal.SIGKILL)  # the worker; its verifier process hangs
        judged = await verifying
        assert judged.outcomes == (Outcome.TIMEOUT, Outcome.CORRECT)
        assert int(note.read_text()) != stuck
        assert not psutil.pid_exists(stuck), "a verifier process outlived its worker"
    finally:
        await pool.close()


async def test_error_names_the_task_without_a_verifier(make_model: Callable[..., Path], group_of: GroupOf) -> None:
    pool = make_pool(make_model)
    await pool.start()
    try:
        group = group_of(["T"], task="riddles")
        with pytest.raises(
            ConfigError, match="task 'riddles', which has no verifier; verifiers exist for: compact, stuck"
        ):
            await pool.verify(ray.put(group.to_columns()), num_tokens=1)
    finally:
        await pool.close()


async def test_pool_without_a_readable_tokenizer_does_not_start(tmp_path: Path) -> None:
    config = VerifierPoolConfig(cpus_per_worker=0.5)
    pool = VerifierPool(config, {}, tokenizer_path=str(tmp_path), start_timeout_s=60)
    with pytest.raises(PoolExhaustedError, match=r"tokenizer\.json does not exist"):
        await pool.start()


def read_pid(note: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if note.is_file() and (text := note.read_text()):
            return int(text)
        time.sleep(0.02)
    raise AssertionError("the verifier did not start within 30 s")
