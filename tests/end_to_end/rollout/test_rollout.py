"""Rollout pool with a real vLLM engine on CPU."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import pytest_asyncio
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families

from actors.rollout.pool import RolloutPool
from actors.weights.publish import publish
from rlad.config import RolloutConfig
from rlad.contracts import FinishReason, RolloutGroup
from rlad.errors import DeadlineError, EngineError, PoolExhaustedError, WorkerLostError

from .rollout_reference import EOS, PROMPT, endless_prompt, largest_gap, load_policy, request, token_logprobs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800), pytest.mark.asyncio(loop_scope="module")]

GROUP_TIMEOUT_S = 8.0
METRICS_PATIENCE_S = 300.0  # Ray passes metrics on every ten seconds; on a loaded machine an export may fail


@pytest.fixture(scope="module")
def model(make_model) -> Path:
    return make_model(tied=True)


@pytest.fixture(scope="module")
def policy(model: Path) -> torch.nn.Module:
    return load_policy(model)


@pytest.fixture(scope="module")
def endless(policy) -> dict[str, object]:
    """Changes to a request that make it half a million tokens long, about 40 s of work on two cores."""
    return {
        "prompt_ids": endless_prompt(policy, 480),
        "num_responses": 1024,
        "max_response_tokens": 480,
        "temperature": 0.01,
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(cluster: None, model: Path) -> AsyncIterator[RolloutPool]:
    config = RolloutConfig(
        workers=1, max_prompt_tokens=32, max_response_tokens=480, max_restarts=1, group_timeout_s=GROUP_TIMEOUT_S
    )
    pool = RolloutPool(
        config, model_path=str(model), dtype="float32", seed=0, start_timeout_s=400, run_id="test-rollout"
    )
    await pool.start()
    yield pool
    await pool.close()


async def sample(pool: RolloutPool, **changes: object) -> RolloutGroup:
    sampled = await pool.sample(request(**changes))
    return RolloutGroup.from_columns(await sampled.columns)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_logprobs_match_transformers_at_the_sampling_temperature(
    pool: RolloutPool, policy, temperature: float
) -> None:
    group = await sample(pool, temperature=temperature, num_responses=16)
    assert group.temperature == temperature
    assert largest_gap(policy, group) <= 1e-4


async def test_untruncated_response_ends_with_the_end_of_sequence_token(pool: RolloutPool) -> None:
    group = await sample(pool, num_responses=32)
    reasons = {FinishReason(reason) for reason in group.finish_reasons}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    for index in range(group.num_responses):
        response = group.response_ids[group.response(index)].tolist()
        if group.is_truncated[index]:
            assert len(response) == 64
            assert EOS not in response
        else:
            assert response.index(EOS) == len(response) - 1


async def test_summary_has_lengths_and_a_reference_to_the_group(pool: RolloutPool) -> None:
    before = {stats.worker: stats for stats in pool.stats()}
    sampled = await pool.sample(request(uid="set:1:7", attempt=2, num_responses=4))
    group, summary = RolloutGroup.from_columns(await sampled.columns), sampled.summary
    assert (summary.uid, summary.attempt, summary.prompt_tokens, summary.tokens_by_version) == (
        "set:1:7",
        2,
        len(PROMPT),
        {0: group.num_tokens},
    )
    assert (group.uid, group.attempt, group.task, group.answer) == ("set:1:7", 2, "knights_knaves", "TF")
    assert summary.response_lengths == tuple(group.response_lengths)
    assert summary.is_truncated == tuple(group.is_truncated)
    assert summary.num_truncated == sum(group.is_truncated)
    assert group.policy_versions.tolist() == [0] * group.num_tokens
    after = {stats.worker: stats for stats in pool.stats()}[sampled.worker]
    so_far = before[sampled.worker].generated_tokens if sampled.worker in before else 0
    assert after.generated_tokens - so_far == group.num_tokens


async def test_greedy_sampling_selects_the_most_likely_token_and_reports_temperature_one(
    pool: RolloutPool, policy
) -> None:
    first, second = (
        await sample(pool, temperature=0.0, num_responses=1),
        await sample(pool, temperature=0.0, num_responses=1),
    )
    assert first.temperature == 1.0
    assert first.response_ids.tolist() == second.response_ids.tolist()
    assert largest_gap(policy, first) <= 1e-4
    prefix = torch.tensor(np.concatenate([PROMPT, first.response_ids[:-1]])).long()
    with torch.no_grad():
        most_likely = policy(prefix[None]).logits[0, len(PROMPT) - 1 :].argmax(-1)
    assert first.response_ids.tolist() == most_likely.tolist()


async def test_top_p_reports_logprobs_of_the_truncated_distribution(pool: RolloutPool, policy) -> None:
    group = await sample(pool, top_p=0.8, temperature=0.6)
    assert largest_gap(policy, group, top_p=0.8) <= 1e-4
    assert (group.behaviour_logprobs > token_logprobs(policy, group) + 1e-3).any(), "no token was truncated"


async def test_seed_and_uid_determine_the_responses(pool: RolloutPool) -> None:
    first, again, other = [await sample(pool, uid=uid, seed=5) for uid in ("a", "a", "b")]
    assert first.response_ids.tolist() == again.response_ids.tolist()
    assert first.response_ids.tolist() != other.response_ids.tolist()
    responses = {tuple(first.response_ids[first.response(index)]) for index in range(first.num_responses)}
    assert len(responses) > 4, "responses of a group must have separate random streams; short ones may coincide"


async def test_concurrent_groups_are_not_mixed_up(pool: RolloutPool, policy) -> None:
    prompts = [np.array([2 + index, 18, 10], np.int32) for index in range(16)]
    sampled = await asyncio.gather(
        *(pool.sample(request(uid=f"g{index}", prompt_ids=prompt)) for index, prompt in enumerate(prompts))
    )
    for index, summary in enumerate(sampled):
        group = RolloutGroup.from_columns(await summary.columns)
        assert group.uid == f"g{index}"
        assert group.prompt_ids.tolist() == prompts[index].tolist()
        assert largest_gap(policy, group) <= 1e-4


async def test_prompts_that_do_not_fit_into_one_batch_are_sampled_with_their_seeds(pool: RolloutPool, policy) -> None:
    """The engine computes 2048 tokens at once on CPU. It cannot divide a prompt whose request has a seed."""
    prompts = [np.resize(np.array([2 + index, 18, 10, 19], np.int32), 440) for index in range(8)]
    sampled = await asyncio.gather(
        *(
            pool.sample(request(uid=f"long{index}", prompt_ids=prompt, num_responses=2, max_response_tokens=4, seed=5))
            for index, prompt in enumerate(prompts)
        )
    )
    for summary in sampled:
        assert largest_gap(policy, RolloutGroup.from_columns(await summary.columns)) <= 1e-4


async def test_metrics_of_vllm_are_at_the_metrics_endpoint_of_ray(pool: RolloutPool, model: Path) -> None:
    sampled_tokens = sum((await pool.sample(request())).summary.response_lengths)
    port, deadline, found = ray.nodes()[0]["MetricsExportPort"], time.monotonic() + METRICS_PATIENCE_S, 0.0
    async with httpx.AsyncClient(timeout=30) as client:
        while found < sampled_tokens and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
            found = sum(each.value for each in samples if each.name == "ray_vllm_generation_tokens_total")
    assert found >= sampled_tokens
    assert {each.labels["model_name"] for each in samples if each.name == "ray_vllm_num_requests_running"} == {
        str(model)
    }


async def test_refusal_of_a_long_request_names_the_setting_to_raise(pool: RolloutPool) -> None:
    with pytest.raises(
        EngineError,
        match=r"a prompt of 8 tokens with up to 505 response tokens exceeds the engines' limit of 512 tokens: raise",
    ):
        await pool.sample(request(max_response_tokens=505))


async def test_request_refused_by_vllm_raises_and_keeps_the_worker(pool: RolloutPool) -> None:
    with pytest.raises(EngineError, match="top_p"):
        await pool.sample(request(top_p=1.5))
    assert (await pool.sample(request())).worker == "rollout-0"


async def test_weight_update_is_refused_while_a_group_is_in_flight(pool: RolloutPool, policy) -> None:
    sampling = asyncio.create_task(pool.sample(request()))
    await asyncio.sleep(0)
    with pytest.raises(EngineError, match="cannot update weights to version 1: 1 groups are in flight"):
        await pool.update_weights(publish(policy.state_dict(), 1))
    assert (await sampling).summary.oldest_version == 0


async def test_group_past_its_deadline_is_aborted_in_the_engine(pool: RolloutPool, endless) -> None:
    with pytest.raises(DeadlineError, match=r"slow attempt 1: rollout-0 did not finish the group within 8 s"):
        await pool.sample(request(uid="slow", attempt=1, **endless))
    await sample(pool)  # would miss its deadline if the engine were still sampling the aborted group


async def test_cancelled_group_is_aborted_in_the_engine(pool: RolloutPool, endless) -> None:
    sampling = asyncio.create_task(pool.sample(request(**endless)))
    await sample(pool, num_responses=1)
    sampling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sampling
    await sample(pool)


async def test_lost_processes_end_the_worker_and_then_the_pool(pool: RolloutPool, policy, make_model, endless) -> None:
    """Last test of the file, because it uses up the pool: its only restart, then its last worker."""
    new_policy = load_policy(make_model(tied=True, seed=1))
    await pool.update_weights(publish(new_policy.state_dict(), 7))
    kept = await pool.sample(request())

    # Kill the worker's process while it samples.
    worker = _worker_process()
    engine = worker.children(recursive=True)
    assert len(engine) >= 1
    sampling = asyncio.create_task(pool.sample(request(**endless)))
    await pool.sample(request(num_responses=1))
    worker.send_signal(signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="rollout-0 was lost"):
        await sampling
    _, alive = await asyncio.to_thread(psutil.wait_procs, engine, 120)
    assert not alive, "the engine's processes must end with the worker"
    group = RolloutGroup.from_columns(await kept.columns)
    assert largest_gap(new_policy, group) <= 1e-4, "a sampled group must outlive its worker"

    # The replacement has the newest weights.
    sampled = await pool.sample(request())
    assert (sampled.worker, sampled.summary.oldest_version) == ("rollout-1", 7)
    group = RolloutGroup.from_columns(await sampled.columns)
    assert largest_gap(new_policy, group) <= 1e-4
    assert largest_gap(policy, group) > 0.1

    # Kill only the engine's process. The worker cannot work without it.
    sampling = asyncio.create_task(pool.sample(request(**endless)))
    await pool.sample(request(num_responses=1))
    for process in _worker_process().children(recursive=True):
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="rollout-1 was lost: .*the vLLM engine's process has died"):
        await sampling
    with pytest.raises(PoolExhaustedError, match="no rollout worker is left and the restart budget is spent"):
        await pool.sample(request())


def _worker_process() -> psutil.Process:
    [process] = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.cmdline()[:1] == ["ray::RolloutWorker"] or "ray::RolloutWorker" in child.name()
    ]
    return process
