"""Weight updates of running vLLM engines through the object store, compared with plain transformers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import ray
import torch
from ray.exceptions import RayError

from actors.engines.vllm_engine.settings import VllmSettings
from actors.messages import WeightsPublication
from actors.rollout.pool import RolloutPool
from actors.rollout.worker import RolloutWorker
from actors.weights.publish import DeltaPublisher, publish
from rlad.config import RolloutConfig
from rlad.contracts import RolloutGroup
from rlad.errors import WeightsMismatchError

from .rollout_reference import endless_prompt, largest_gap, load_policy, request

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800), pytest.mark.asyncio(loop_scope="module")]

# Longer than a block of vLLM's prefix cache on CPU (128 tokens), so a second request reuses the first one's cache.
LONG_PROMPT = (np.arange(200) % 27 + 2).astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """Engines under test.

    Attributes:
        tied: Pool of two workers on this node, whose model has tied embeddings.
        untied: Single worker without a pool, whose model has untied embeddings. A pool would hide its errors by
            replacing it.
    """

    tied: RolloutPool
    untied: Any


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(cluster: None, make_model) -> AsyncIterator[Engines]:
    config = RolloutConfig(workers=2, max_prompt_tokens=256, max_response_tokens=64, max_restarts=0)
    pool = RolloutPool(
        config, model_path=str(make_model(tied=True)), dtype="float32", seed=0, start_timeout_s=400, run_id="test-tied"
    )
    settings = VllmSettings(
        model_path=str(make_model(tied=False)),
        dtype="float32",
        max_sequence_tokens=320,
        max_sequences=64,
        seed=0,
        on_gpu=False,
        tensor_parallel=1,
        gpu_memory_fraction=0.9,
        kv_cache_gib=1,
        threads=1,
    )
    worker = ray.remote(RolloutWorker).remote(settings, "test-untied")

    async def start_worker() -> None:
        await worker.start.remote()

    await asyncio.gather(pool.start(), start_worker())
    yield Engines(tied=pool, untied=worker)
    await worker.close.remote()
    await pool.close()
    assert not in_shared_memory("rlad-test-*tied"), "the pool and the worker must remove their files"


def in_shared_memory(pattern: str) -> list[Path]:
    return sorted(Path("/dev/shm").glob(pattern))


async def sample(worker: Any, **changes: object) -> RolloutGroup:
    _, group_ref = worker.sample.remote(request(**changes))
    return RolloutGroup.from_columns(await group_ref)


async def sample_on_both(pool: RolloutPool, **changes: object) -> list[RolloutGroup]:
    """Sample a group on each of the pool's two workers."""
    sampled = await asyncio.gather(*(pool.sample(request(uid=f"g{index}", **changes)) for index in range(2)))
    assert {summary.worker for summary in sampled} == {"rollout-0", "rollout-1"}
    return [RolloutGroup.from_columns(await summary.columns) for summary in sampled]


async def test_tied_weights_are_loaded_by_every_worker_from_one_file(engines: Engines, make_model) -> None:
    old, new = (load_policy(make_model(tied=True, seed=seed)) for seed in (0, 1))
    for group in await sample_on_both(engines.tied):
        assert largest_gap(old, group) <= 1e-4
    for version, policy, other in ((1, new, old), (2, old, new)):
        publication = publish(policy.state_dict(), version)
        await engines.tied.update_weights(publication)
        for group in await sample_on_both(engines.tied):
            assert group.policy_versions.tolist() == [version] * group.num_tokens
            assert largest_gap(policy, group) <= 1e-4
            assert largest_gap(other, group) > 0.1
        files = in_shared_memory("rlad-test-tied/*.safetensors")
        assert [file.name for file in files] == [f"v{version}-{publication.manifest.checksum}.safetensors"], (
            "one file for both workers, and no older one"
        )


async def test_untied_weights_are_loaded(engines: Engines, make_model) -> None:
    old, new = (load_policy(make_model(tied=False, seed=seed)) for seed in (0, 1))
    assert largest_gap(old, await sample(engines.untied)) <= 1e-4
    publication = publish(new.state_dict(), 1)
    assert await engines.untied.update_weights.remote(publication) == publication.manifest
    group = await sample(engines.untied)
    assert group.policy_versions.tolist() == [1] * group.num_tokens
    assert largest_gap(new, group) <= 1e-4
    assert largest_gap(old, group) > 0.1


async def test_progress_counts_every_token_and_no_time_without_requests(engines: Engines, make_model) -> None:
    worker = engines.untied
    before = await worker.progress.remote()
    groups = await asyncio.gather(*(sample(worker, uid=f"progress-{index}", num_responses=4) for index in range(3)))
    after = await worker.progress.remote()
    assert after.tokens - before.tokens == sum(group.num_tokens for group in groups)
    busy_s, sequence_s = after.busy_s - before.busy_s, after.sequence_s - before.sequence_s
    assert 0 < busy_s < sequence_s < 12 * busy_s, "it decoded between 1 and 12 sequences at once"

    cut, columns = worker.sample.remote(request(uid="progress-cut", num_responses=64))
    async with asyncio.timeout(60):
        while (await worker.progress.remote()).tokens == after.tokens:
            await asyncio.sleep(0.01)
    ray.cancel(cut)
    for ref in (cut, columns):
        with suppress(RayError):
            await ref
    idle = await worker.progress.remote()
    await worker.update_weights.remote(publish(load_policy(make_model(tied=False, seed=1)).state_dict(), 1))
    assert (await worker.progress.remote()).busy_s == idle.busy_s, "neither idle time nor a weight update counts"


async def test_overwriting_the_weight_file_does_not_change_the_loaded_model(engines: Engines, make_model) -> None:
    """The engine keeps the file mapped, and the next version is written into that mapping."""
    policy = load_policy(make_model(tied=False, seed=2))
    publication = publish(policy.state_dict(), 2)
    await engines.untied.update_weights.remote(publication)
    [file] = in_shared_memory("rlad-test-untied/*.safetensors")
    before = file.read_bytes()
    with file.open("r+b") as mapped:
        mapped.write(bytes(len(before)))
    assert largest_gap(policy, await sample(engines.untied)) <= 1e-4
    next_policy = load_policy(make_model(tied=False, seed=12))
    inode = file.stat().st_ino
    await engines.untied.update_weights.remote(publish(next_policy.state_dict(), 3))
    [file] = in_shared_memory("rlad-test-untied/*.safetensors")
    assert file.stat().st_ino == inode, "the file must be overwritten in place"
    assert largest_gap(next_policy, await sample(engines.untied)) <= 1e-4


async def test_prefix_cache_of_old_weights_is_not_used_with_new_ones(engines: Engines, make_model) -> None:
    for version in (3, 4):
        policy = load_policy(make_model(tied=False, seed=version))
        await engines.untied.update_weights.remote(publish(policy.state_dict(), version))
        for _ in range(2):  # the second request finds its prefix in the cache
            assert largest_gap(policy, await sample(engines.untied, prompt_ids=LONG_PROMPT)) <= 1e-4


async def test_update_during_generation_continues_with_new_weights_and_old_keys_and_values(
    engines: Engines, make_model
) -> None:
    old, new = (load_policy(make_model(tied=False, seed=seed)) for seed in (6, 7))
    await engines.untied.update_weights.remote(publish(old.state_dict(), 8))
    long = {
        "uid": "long",
        "prompt_ids": endless_prompt(old, 250),
        "num_responses": 32,
        "max_response_tokens": 250,
        "temperature": 0.7,
    }
    sampling = asyncio.create_task(sample(engines.untied, **long))
    await sample(engines.untied, num_responses=1, max_response_tokens=8)  # during the long request
    await engines.untied.update_weights.remote(publish(new.state_dict(), 9))
    after = asyncio.create_task(sample(engines.untied, uid="after", prompt_ids=long["prompt_ids"], num_responses=2))

    group = await sampling
    assert np.unique(group.policy_versions).tolist() == [8, 9]
    for index in range(group.num_responses):
        versions = group.policy_versions[group.response(index)]
        assert (np.diff(versions) >= 0).all()
        expected = logprobs_across_an_update(old, new, group, index, first_of_new=int((versions == 8).sum()))
        np.testing.assert_allclose(group.behaviour_logprobs[group.response(index)], expected, atol=1e-4, rtol=0)
    assert largest_gap(new, await after) <= 1e-4, "a new request must not use the keys and values of the old weights"


def logprobs_across_an_update(
    old: torch.nn.Module, new: torch.nn.Module, group: RolloutGroup, index: int, *, first_of_new: int
) -> np.ndarray:
    """Return log-probabilities, [N], of a response that was sampled across a weight update.

    Tokens from `first_of_new` on are sampled by `new`. It uses the keys and values that `old` computed for all but the
    last of the earlier tokens.
    """
    response = group.response_ids[group.response(index)]
    ids = torch.tensor(np.concatenate([group.prompt_ids, response]), dtype=torch.long)[None]
    start = len(group.prompt_ids)
    switch = min(max(start + first_of_new - 1, 0), ids.shape[1] - 1)
    with torch.no_grad():
        before = old(ids[:, :switch], use_cache=True)
        after = new(ids[:, switch:], past_key_values=before.past_key_values)
    logits = torch.cat([before.logits, after.logits], dim=1)[0, start - 1 : -1].double() / group.temperature
    return logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response).long()].numpy()


async def test_weights_published_in_bfloat16_are_cast(engines: Engines, make_model) -> None:
    policy = load_policy(make_model(tied=False, seed=5))
    rounded = {name: tensor.bfloat16() for name, tensor in policy.state_dict().items()}
    policy.load_state_dict(rounded)
    await engines.untied.update_weights.remote(publish(rounded, 5))
    assert largest_gap(policy, await sample(engines.untied)) <= 1e-4


async def test_weights_that_differ_from_the_publication_are_refused_and_the_old_ones_kept(
    engines: Engines, make_model
) -> None:
    policy, other = (load_policy(make_model(tied=False, seed=seed)) for seed in (6, 7))
    await engines.untied.update_weights.remote(publish(policy.state_dict(), 6))
    good = publish(other.state_dict(), 7)
    weights = other.state_dict()
    forged = {
        "checksum": replace(good, manifest=replace(good.manifest, checksum="0" * 32)),
        r"expected \d+ bytes": replace(good, manifest=replace(good.manifest, num_bytes=good.manifest.num_bytes + 1)),
        "k_proj": publish(
            {name: tensor for name, tensor in weights.items() if "layers.1.self_attn.k_proj" not in name}, 7
        ),
        "unknown or have a different shape: .*embed_tokens": publish(
            weights | {"model.embed_tokens.weight": torch.zeros(7, 64)}, 7
        ),
    }
    for problem, publication in forged.items():
        with pytest.raises(WeightsMismatchError, match=problem):
            await engines.untied.update_weights.remote(publication)
        assert await engines.untied.version.remote() == 6
        assert largest_gap(policy, await sample(engines.untied)) <= 1e-4
    await engines.untied.update_weights.remote(good)
    assert largest_gap(other, await sample(engines.untied)) <= 1e-4, "a refused file must not block the right one"


async def test_corrupted_weight_file_is_refused(engines: Engines, make_model) -> None:
    publication = publish(load_policy(make_model(tied=False, seed=8)).state_dict(), 8)
    content = np.concatenate([part for bucket in publication.buckets for part in ray.get(bucket.ref, timeout=60)])
    content[-1] ^= 1  # one bit of one weight
    content.tofile(f"/dev/shm/rlad-test-untied/v8-{publication.manifest.checksum}.safetensors")
    with pytest.raises(WeightsMismatchError, match="expected checksum"):
        await engines.untied.update_weights.remote(publication)
    assert await engines.untied.version.remote() == 7
    assert await engines.untied.update_weights.remote(publication) == publication.manifest, "the file must be replaced"


async def updated(worker: Any, publication: WeightsPublication) -> RolloutGroup:
    """Update a worker's weights, and sample a group of fixed seed with them."""
    assert await worker.update_weights.remote(publication) == publication.manifest
    return await sample(worker, seed=3, prompt_ids=LONG_PROMPT)


def is_bit_equal(first: RolloutGroup, second: RolloutGroup) -> bool:
    return (
        first.response_ids.tolist() == second.response_ids.tolist()
        and first.behaviour_logprobs.tobytes() == second.behaviour_logprobs.tobytes()
    )


async def test_deltas_give_the_same_engine_as_full_versions(engines: Engines, make_model) -> None:
    policy = load_policy(make_model(tied=False, seed=9))
    weights, publisher = policy.state_dict(), DeltaPublisher(full_every=100)
    group = await updated(engines.untied, publisher.publish(weights, 100))
    changes = ["self_attn.k_proj", "mlp.up_proj", "lm_head", "model.norm", "embed_tokens"]
    for version, change in enumerate(changes, start=101):
        name = next(name for name in weights if change in name)
        weights[name].view(-1)[::5] *= 1.5
        publication = publisher.publish(weights, version)
        assert len(publication.deltas) == version - 100
        before, group = group, await updated(engines.untied, publication)
        assert largest_gap(policy, group) <= 1e-4
        assert not is_bit_equal(group, before), f"{name} must matter"
        # The same file again, without a statement of what changed: the engine loads every tensor.
        assert is_bit_equal(group, await updated(engines.untied, publish(weights, version)))


async def test_tensors_that_did_not_change_are_not_loaded_again(engines: Engines, make_model) -> None:
    """A delta with a false statement of what changed leaves the engine with the old values of that tensor."""
    weights, publisher = load_policy(make_model(tied=False, seed=9)).state_dict(), DeltaPublisher(full_every=100)
    before = await updated(engines.untied, publisher.publish(weights, 110))
    weights["lm_head.weight"].view(-1)[::5] *= 1.5
    publication = publisher.publish(weights, 111)
    forged = replace(publication, deltas=(replace(publication.deltas[0], changed=b""),))
    assert is_bit_equal(before, await updated(engines.untied, forged))
    assert not is_bit_equal(before, await updated(engines.untied, publish(weights, 112)))


async def test_wrong_file_under_a_delta_is_replaced_by_a_full_version(engines: Engines, make_model) -> None:
    policy = load_policy(make_model(tied=False, seed=9))
    weights, publisher = policy.state_dict(), DeltaPublisher(full_every=100)
    await engines.untied.update_weights.remote(publisher.publish(weights, 120))
    [file] = in_shared_memory("rlad-test-untied/*.safetensors")
    with file.open("r+b") as content:  # a bit flip in memory
        content.seek(-1, 2)
        content.write(b"\xff")
    weights["model.norm.weight"][0] += 1
    assert largest_gap(policy, await updated(engines.untied, publisher.publish(weights, 121))) <= 1e-4


async def test_workers_with_tied_weights_load_deltas_and_make_up_for_missed_versions(
    engines: Engines, make_model
) -> None:
    policy = load_policy(make_model(tied=True, seed=4))
    weights, publisher = policy.state_dict(), DeltaPublisher(full_every=100)
    for version in range(100, 104):
        weights["model.embed_tokens.weight"].view(-1)[version::9] *= 1.5
        publication = publisher.publish(weights, version)
        if version == 102:  # missed
            continue
        await engines.tied.update_weights(publication)
        for group in await sample_on_both(engines.tied):
            assert group.policy_versions.tolist() == [version] * group.num_tokens
            assert largest_gap(policy, group) <= 1e-4
