"""Teacher on Serve with both engines, against plain transformers, while replicas and engines are killed."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from ray import serve
from transformers import AutoConfig, AutoModelForCausalLM

from actors.teacher.client import TeacherClient
from actors.teacher.deployment import delete_teacher, deploy_teacher
from actors.teacher.owner import CHECK_PERIOD_S
from rlad.config import TeacherConfig
from rlad.contracts import RolloutGroup, finite_rows
from rlad.data.chat import encode_prompts, load_tokenizer, tokenizer_fingerprint
from rlad.data.records import PromptRecord
from rlad.data.teacher_prompts import teacher_record
from rlad.errors import DeadlineError, EngineError, VocabularyMismatchError
from rlad.models.output_layer import read_output_layer

from .reference_scores import (
    POISON,
    assert_support_is_exact,
    make_group,
    plain_distributions,
    plain_logprobs,
    score,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

START_TIMEOUT_S = 540.0


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher")
    causal_lm = AutoModelForCausalLM.from_pretrained(make_model(tied=False), dtype=torch.float32)
    with torch.no_grad():
        causal_lm.get_input_embeddings().weight[POISON] = float("nan")
    causal_lm.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((make_model(tied=False) / name).read_bytes())
    return path


@contextmanager
def deployed(config: TeacherConfig) -> Iterator[TeacherClient]:
    app_name = f"teacher-{config.engine}-{config.send}-{os.getpid()}"
    fingerprint = tokenizer_fingerprint(config.path)
    yield asyncio.run(
        deploy_teacher(config, app_name=app_name, tokenizer_fingerprint=fingerprint, start_timeout_s=START_TIMEOUT_S)
    )
    asyncio.run(delete_teacher(app_name))


@pytest.fixture(scope="module")
def transformers_teacher(model: Path) -> Iterator[TeacherClient]:
    # This token budget splits groups and packs parts of several groups into one row.
    with deployed(TeacherConfig(path=str(model), dtype="float32", engine="transformers", token_budget=300)) as client:
        yield client


@pytest.fixture(scope="module")
def vllm_teacher(model: Path) -> Iterator[TeacherClient]:
    with deployed(TeacherConfig(path=str(model), dtype="float32", engine="vllm", token_budget=512)) as client:
        yield client


@pytest.fixture(params=["transformers", "vllm"])
def hidden_teacher(request: pytest.FixtureRequest, model: Path) -> Iterator[TeacherClient]:
    # This token budget cuts the prefill of a response into chunks.
    settings = {"path": str(model), "dtype": "float32", "engine": request.param, "send": "hidden_states"}
    with deployed(TeacherConfig(**settings, token_budget=64, cpus_per_replica=0.1)) as client:
        yield client


@pytest.fixture(params=["transformers", "vllm"])
def teacher(request: pytest.FixtureRequest) -> TeacherClient:
    client: TeacherClient = request.getfixturevalue(f"{request.param}_teacher")
    return client


def replica_of(client: TeacherClient) -> psutil.Process:
    [replica] = [
        each
        for each in psutil.process_iter(["cmdline"])
        if f"ServeReplica:{client.app_name}" in " ".join(each.info["cmdline"] or [])
    ]
    return replica


async def engine_of(client: TeacherClient) -> psutil.Process:
    """Return the engine process of a serving replica. Waits while a replica is being replaced and has none."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            await client.stats()
            for process in psutil.process_iter(["cmdline"]):
                if f"ServeReplica:{client.app_name}" in " ".join(process.info["cmdline"] or []):
                    with suppress(psutil.NoSuchProcess):
                        for child in process.children(recursive=True):
                            # It does not always get its title, and then is the only spawned child.
                            if re.search("EngineCore|spawn_main", " ".join(child.cmdline())):
                                return child
            await asyncio.sleep(0.1)


async def assert_survives_kill(client: TeacherClient, model: Path, victim: psutil.Process) -> None:
    """Kill a process while groups are being scored, and check that all of them are scored correctly."""
    before = await client.stats()
    groups = [make_group(1000 + seed) for seed in range(40)]
    scoring = [asyncio.create_task(score(client, group)) for group in groups]
    async with asyncio.timeout(30):
        while (now := await client.stats()).num_groups == before.num_groups or now.ongoing_groups == 0:
            pass  # every iteration awaits an answer of the replica
    victim.kill()
    scored = await asyncio.gather(*scoring)
    for group, scores in zip(groups, scored, strict=True):
        np.testing.assert_allclose(scores.logprobs, plain_logprobs(model, group), atol=1e-5, rtol=0)


async def test_scores_equal_a_plain_forward_pass(teacher: TeacherClient, model: Path) -> None:
    groups = [
        *(make_group(seed) for seed in range(4)),
        make_group(4, prompt_tokens=1),
        make_group(5, lengths=[0, 0]),
        make_group(6, lengths=[1]),
    ]
    for group, scores in zip(groups, await asyncio.gather(*(score(teacher, group) for group in groups)), strict=True):
        assert scores.logprobs.dtype == np.float32
        np.testing.assert_allclose(scores.logprobs, plain_logprobs(model, group), atol=1e-5, rtol=0)


async def test_scores_behind_a_template_equal_a_plain_forward_pass_on_the_templated_prompt(
    teacher: TeacherClient, model: Path
) -> None:
    """One group is scored behind two templates and its own prompt at the same time, and keeps its tokens."""
    tokenizer = load_tokenizer(model)
    record = PromptRecord(id="kk", task="knights_knaves", prompt="A:b;B:A&b;?", answer="FT")
    [question] = encode_prompts(tokenizer, [record], 100, {})
    group = replace(make_group(15), prompt_ids=question)
    templates = ("{question}{answer}?", "T:{answer};" * 9 + "{question}")
    privileged = encode_prompts(tokenizer, [teacher_record(record, template) for template in templates], 200, {})
    assert "".join(tokenizer.convert_ids_to_tokens(privileged[0].tolist())) == "A:b;B:A&b;?FT?"
    prompts = [None, *privileged]
    found = await asyncio.gather(*(score(teacher, group, None, prompt_ids) for prompt_ids in prompts))
    supported = await score(teacher, group, 3, privileged[1])
    for prompt_ids, scores in zip([*prompts, privileged[1]], [*found, supported], strict=True):
        expected = plain_logprobs(model, group.behind(prompt_ids))
        np.testing.assert_allclose(scores.logprobs, expected, atol=1e-5, rtol=0)
    assert np.abs(found[0].logprobs - found[1].logprobs).max() > 1e-2
    assert_support_is_exact(supported, group.behind(privileged[1]), model, 3)


@pytest.mark.parametrize("size", [1, 5])
async def test_most_likely_tokens_and_their_tail_equal_a_plain_log_softmax(
    teacher: TeacherClient, model: Path, size: int
) -> None:
    for group in (make_group(10), make_group(11, prompt_tokens=1), make_group(12, lengths=[0, 0])):
        scores = await score(teacher, group, size)
        np.testing.assert_allclose(scores.logprobs, plain_logprobs(model, group), atol=1e-5, rtol=0)
        tails = assert_support_is_exact(scores, group, model, size)
        if "transformers" in teacher.app_name:
            np.testing.assert_allclose(scores.tail_logprobs, tails, atol=1e-5, rtol=0)
        else:  # vLLM returns only the support, so the tail is computed as a difference from 1
            np.testing.assert_allclose(np.exp(scores.tail_logprobs), np.exp(tails), atol=2e-6, rtol=0)
        sampled_only = await score(teacher, group)
        assert sampled_only.support_ids is None
        assert sampled_only.logprobs.nbytes == 4 * group.num_tokens


async def test_full_vocabulary_support(
    transformers_teacher: TeacherClient, vllm_teacher: TeacherClient, model: Path
) -> None:
    vocabulary = AutoConfig.from_pretrained(model).vocab_size
    group = make_group(13, temperature=0.6)
    scores = await score(transformers_teacher, group, "full")
    assert_support_is_exact(scores, group, model, vocabulary)
    assert np.all(np.isneginf(scores.tail_logprobs))
    with pytest.raises(EngineError, match="not the full vocabulary: use the transformers engine"):
        await score(vllm_teacher, make_group(13), "full")
    for client in (transformers_teacher, vllm_teacher):
        with pytest.raises(EngineError, match=f"from 1 to {vocabulary}, the teacher's vocabulary size"):
            await score(client, make_group(13), vocabulary + 1)
    whole = make_group(14)
    scores = await score(vllm_teacher, whole, vocabulary)
    assert_support_is_exact(scores, whole, model, vocabulary)
    assert np.all(np.isneginf(scores.tail_logprobs))


async def test_hidden_states_give_the_log_probabilities_of_the_vocabulary(
    hidden_teacher: TeacherClient, model: Path
) -> None:
    layer = read_output_layer(model, torch.float32)
    groups = [make_group(15, temperature=0.6), make_group(16, prompt_tokens=1), make_group(17, lengths=[0, 0])]
    for group in groups:
        scores = await score(hidden_teacher, group, "hidden_states")
        assert np.isnan(scores.logprobs).all()
        assert scores.output_layer == layer.sha256
        logits = torch.from_numpy(scores.hidden_rows.copy()) @ layer.weight.T / group.temperature
        np.testing.assert_allclose(
            logits.log_softmax(dim=-1).numpy(), plain_distributions(model, group), atol=1e-5, rtol=0
        )
    clean = make_group(18, lengths=[9, 40])
    response_ids = clean.response_ids.copy()
    response_ids[3] = POISON
    poisoned = await score(hidden_teacher, replace(clean, response_ids=response_ids), "hidden_states")
    is_finite = finite_rows(poisoned.hidden_rows)
    # Attention of a whole row multiplies values of later tokens by 0, so earlier positions may be NaN too.
    assert not is_finite[4:9].any()
    assert is_finite[9:].all()
    again = await score(hidden_teacher, groups[0], "hidden_states")
    assert finite_rows(again.hidden_rows).all()
    with pytest.raises(EngineError, match="sends hidden states .*; the request is for None"):
        await score(hidden_teacher, clean)


async def test_nan_scores_reach_the_caller_and_stay_in_their_sequence(teacher: TeacherClient, model: Path) -> None:
    clean = make_group(20, lengths=[5, 9])
    response_ids = clean.response_ids.copy()
    response_ids[3] = POISON
    poisoned = RolloutGroup(**{**clean.to_columns(), "response_ids": response_ids})
    scores = await score(teacher, poisoned)
    assert np.isnan(scores.logprobs[4])
    np.testing.assert_allclose(scores.logprobs[5:], plain_logprobs(model, clean)[5:], atol=1e-5, rtol=0)
    np.testing.assert_allclose((await score(teacher, clean)).logprobs, plain_logprobs(model, clean), atol=1e-5, rtol=0)


async def test_nan_scores_do_not_reach_later_sequences(vllm_teacher: TeacherClient, model: Path) -> None:
    """Short sequences reuse blocks of the KV cache that hold NaN behind their ends."""
    clean = make_group(21, lengths=[40] * 16)
    poisoned = RolloutGroup(**{**clean.to_columns(), "response_ids": np.full_like(clean.response_ids, POISON)})
    groups = [make_group(seed, lengths=[3, 7, 1, 17] * 4) for seed in range(22, 26)]
    first, *together = await asyncio.gather(*(score(vllm_teacher, group) for group in (poisoned, *groups)))
    assert np.isnan(first.logprobs).sum() >= 39 * 16
    later = [await score(vllm_teacher, make_group(seed, lengths=[2, 9] * 8)) for seed in range(26, 30)]
    expected = [*groups, *(make_group(seed, lengths=[2, 9] * 8) for seed in range(26, 30))]
    for group, scores in zip(expected, [*together, *later], strict=True):
        np.testing.assert_allclose(scores.logprobs, plain_logprobs(model, group), atol=1e-5, rtol=0)


async def test_repeated_group_comes_from_the_cache(teacher: TeacherClient) -> None:
    group = make_group(30, lengths=[4, 0, 6])
    first, before = await score(teacher, group), await teacher.stats()
    again, after = await score(teacher, group), await teacher.stats()
    assert again.logprobs.tolist() == first.logprobs.tolist()
    assert (after.cache_hits - before.cache_hits, after.cache_misses - before.cache_misses) == (2, 0)
    assert (after.num_groups - before.num_groups, after.num_tokens - before.num_tokens) == (1, 10)
    assert after.busy_s > before.busy_s > 0


async def test_cached_scores_are_separate_for_each_support(teacher: TeacherClient) -> None:
    group = make_group(31, lengths=[4, 6])
    for support in (None, 3, 4):
        before = await teacher.stats()
        first, again = await score(teacher, group, support), await score(teacher, group, support)
        after = await teacher.stats()
        assert (after.cache_hits - before.cache_hits, after.cache_misses - before.cache_misses) == (2, 2)
        for name, column in first.to_columns().items():
            np.testing.assert_array_equal(again.to_columns()[name], column)


async def test_temperature_other_than_one(
    transformers_teacher: TeacherClient, vllm_teacher: TeacherClient, model: Path
) -> None:
    group = make_group(40, temperature=0.6)
    np.testing.assert_allclose(
        (await score(transformers_teacher, group)).logprobs, plain_logprobs(model, group), atol=1e-5, rtol=0
    )
    with pytest.raises(EngineError, match="scores at temperature 1 only; the group was sampled at 0.6"):
        await score(vllm_teacher, group)


async def test_client_with_another_vocabulary_is_refused(transformers_teacher: TeacherClient) -> None:
    stranger = replace(transformers_teacher, tokenizer_fingerprint="0123456789abcdef")
    with pytest.raises(VocabularyMismatchError, match="the student's is 0123456789abcdef") as refused:
        await score(stranger, make_group(50))
    assert type(refused.value) is VocabularyMismatchError


async def test_deadline_error_names_the_teacher_and_leaves_it_usable(
    transformers_teacher: TeacherClient, model: Path
) -> None:
    hasty = replace(transformers_teacher, timeout_s=0.001)
    with pytest.raises(
        DeadlineError,
        match=f"teacher '{transformers_teacher.app_name}' did not score a group of 150 tokens within 0.001 s",
    ):
        await score(hasty, make_group(60))
    group = make_group(61)
    np.testing.assert_allclose(
        (await score(transformers_teacher, group)).logprobs, plain_logprobs(model, group), atol=1e-5, rtol=0
    )


async def test_wrong_token_count_is_detected(transformers_teacher: TeacherClient) -> None:
    with pytest.raises(EngineError, match="scored 150 tokens of a group; expected 149"):
        await transformers_teacher.score(ray.put(make_group(70).to_columns()), num_tokens=149)


async def test_killed_replica_is_replaced_and_its_groups_are_retried(
    transformers_teacher: TeacherClient, model: Path
) -> None:
    large = make_group(80, lengths=[450] * 60)  # too large for a Ray reply: these scores are in the object store
    scores_ref = await transformers_teacher.score(ray.put(large.to_columns()), num_tokens=large.num_tokens)
    await assert_survives_kill(transformers_teacher, model, replica_of(transformers_teacher))
    assert len((await scores_ref)["logprobs"]) == large.num_tokens, "scores outlive the replica that created them"


async def test_replica_whose_engine_was_killed_is_replaced(vllm_teacher: TeacherClient, model: Path) -> None:
    engine = await engine_of(vllm_teacher)
    await assert_survives_kill(vllm_teacher, model, engine)
    assert (await engine_of(vllm_teacher)).pid != engine.pid


@ray.remote(num_cpus=0)
class Owner:
    """Actor of a driver."""


async def test_teacher_is_deleted_when_an_actor_of_its_driver_dies(model: Path) -> None:
    owner, app_name = Owner.remote(), f"owned-{os.getpid()}"
    config = TeacherConfig(path=str(model), dtype="float32", engine="transformers", cpus_per_replica=0.1)
    client = await deploy_teacher(
        config,
        app_name=app_name,
        tokenizer_fingerprint=tokenizer_fingerprint(config.path),
        start_timeout_s=START_TIMEOUT_S,
        owner=owner,
    )
    await asyncio.sleep(CHECK_PERIOD_S + 1)
    await score(client, make_group(90))
    ray.kill(owner)
    async with asyncio.timeout(START_TIMEOUT_S):
        while app_name in serve.status().applications:
            await asyncio.sleep(0.2)


async def test_teacher_that_cannot_serve_is_deleted(model: Path) -> None:
    app_name = f"refused-{os.getpid()}"
    config = TeacherConfig(path=str(model), dtype="float32", engine="transformers", cpus_per_replica=0.1)
    with pytest.raises(VocabularyMismatchError, match="use a teacher and a student with one vocabulary"):
        await deploy_teacher(config, app_name=app_name, tokenizer_fingerprint="other", start_timeout_s=START_TIMEOUT_S)
    assert app_name not in serve.status().applications
    missing = config.model_copy(update={"path": str(model / "missing")})
    with pytest.raises(
        EngineError, match=f"teacher '{app_name}' did not start: the model directory .*missing does not exist"
    ):
        await deploy_teacher(missing, app_name=app_name, tokenizer_fingerprint="other", start_timeout_s=START_TIMEOUT_S)
    assert app_name not in serve.status().applications
    await delete_teacher(app_name)
