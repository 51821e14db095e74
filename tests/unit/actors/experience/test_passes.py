"""Several passes over a batch: the same updates again, against the policy that sampled them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.experience.batch_shards import StepShards
from actors.experience.broker import ExperienceBroker
from actors.experience.group import ExperienceGroup
from rlad.contracts import ScoredGroup
from rlad.objectives import TrrdConfig, build_objective
from rlad.packing import BatchRules, build_training_batch

from ...rlad.objectives.slow_reference import Settings, token_value_and_slope
from ...rlad.scored_groups import VOCABULARY, scored_group
from .experience_groups import all_shards, group, policy, sequences

GROUPS = {
    "a": scored_group("a", [3, 2], seed=1, rewards=[1, 0]),
    "b": scored_group("b", [1, 4], seed=2, rewards=[0, 1]),
    "c": scored_group("c", [2, 2], seed=3, rewards=[1, 1]),  # equal rewards: no gradient
    "d": scored_group("d", [4, 1], seed=4, rewards=[0, 1]),
}
LEARNING_RATE = 0.5


def shards_of_two_passes() -> StepShards:
    shards = StepShards(0, [["a", "b"], ["c", "d"]], 2, replace(policy(token_budget=12), passes=2))
    for uid, scored in GROUPS.items():
        shards.add(experience(uid, scored))
    return shards


def experience(uid: str, scored: ScoredGroup) -> ExperienceGroup:
    lengths = tuple(int(length) for length in scored.group.response_lengths)
    return group(uid, lengths=lengths, rewards=tuple(scored.rewards.tolist()))


def test_second_pass_repeats_the_updates_of_the_first() -> None:
    rows = [row[0] for row in all_shards(shards_of_two_passes())]
    trained: dict[int, list[tuple[str, int]]] = {}
    for shard in rows:
        trained.setdefault(shard.update, []).extend(sequences(shard))
    first, second = sorted([("a", 0), ("a", 1), ("b", 0), ("b", 1)]), [("d", 0), ("d", 1)]
    assert [sorted(trained[update]) for update in sorted(trained)] == [first, second, first, second]
    assert [shard.update for shard in rows if shard.ends_update] == [0, 1, 2, 3]
    assert [shard.update for shard in rows if shard.ends_step] == [3]
    assert [shard.index for shard in rows] == list(range(len(rows)))
    assert {shard.normalizer.num_responses for shard in rows} == {4}
    assert shards_of_two_passes().uids == ["a", "b", "c", "d"]


def test_replacement_is_trained_on_in_every_pass() -> None:
    shards = StepShards(0, [["a"], ["b"]], 2, replace(policy(), passes=3))
    shards.replace("b", by="x")
    shards.add(group("a"))
    assert len(all_shards(shards)) == 1, "the second update waits for the replacement"
    shards.add(group("x"))
    assert [{*row[0].groups} for row in all_shards(shards)] == [{"a"}, {"x"}] * 3


def test_ranks_that_restart_in_a_later_pass_claim_the_same_shards_and_each_group_counts_once(tmp_path: Path) -> None:
    async def drive() -> dict[str, int]:
        broker = ExperienceBroker(str(tmp_path / "ledger.sqlite"), replace(policy(), passes=2), group_size=2)
        await broker.open_step(0, [[("a", "prompt")], [("b", "prompt")]])
        for uid in "ab":
            await broker.record_sampled(uid, 0)
            await broker.add(0, group(uid))
        claimed = [await broker.claim(0, 0, index) for index in range(3)]
        await broker.report_started(0, [])
        again = [await broker.claim(0, 0, index) for index in range(4)]
        assert again[:3] == claimed
        assert [shard.ends_step for shard in again if shard is not None] == [False, False, False, True]
        await broker.finish_step(0, [], {})
        await broker.commit(1)
        return await broker.counts()

    counts = asyncio.run(drive())
    assert (counts["committed"], counts["trained_steps"], counts["lost"], counts["duplicated"]) == (2, 1, 0, 0)


def test_weights_after_two_passes_equal_an_independent_implementation() -> None:
    """A table of logits by current token is trained by plain descent, 2 passes of 2 updates.

    The independent side computes each token's slope in Python floats. pi_old is the recorded policy of sampling in both
    passes. A pi_old that was taken anew for the second pass would give other weights.
    """
    start = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Sampled by a policy near the start, so that tokens are on both sides of the clip and none is far outside.
    groups = {uid: sampled_near(scored, start) for uid, scored in GROUPS.items()}
    table = start.clone().requires_grad_()
    objective = build_objective(TrrdConfig())
    for row in all_shards(shards_of_two_passes()):
        shard = row[0]
        for batch_sequences in shard.micro_batches:
            batch, _ = build_training_batch(
                groups, batch_sequences, normalizer=shard.normalizer, rules=BatchRules(objective=TrrdConfig())
            )
            logprobs = table.log_softmax(1)[torch.from_numpy(batch.token_ids), torch.from_numpy(batch.target_ids)]
            assert batch.teacher_logprobs is not None
            objective.packed(
                policy_logprobs=logprobs,
                behaviour_logprobs=torch.from_numpy(batch.behaviour_logprobs),
                teacher_logprobs=torch.from_numpy(batch.teacher_logprobs),
                advantages=torch.from_numpy(batch.advantages),
                weights=torch.from_numpy(batch.weights),
            ).loss.backward()
        if shard.ends_update:
            table = stepped(table, table.grad)
    expected = start
    for update in (["a", "b"], ["c", "d"]) * 2:
        expected = expected - LEARNING_RATE * slow_gradient(expected, [groups[uid] for uid in update])
    torch.testing.assert_close(table.detach(), expected, rtol=1e-6, atol=1e-7)  # columns are float32
    one_pass = start
    for update in (["a", "b"], ["c", "d"]):
        one_pass = one_pass - LEARNING_RATE * slow_gradient(one_pass, [groups[uid] for uid in update])
    assert (expected - one_pass).abs().max() > 1e-2
    renewed = one_pass
    for update in (["a", "b"], ["c", "d"]):
        renewed = renewed - LEARNING_RATE * slow_gradient(
            renewed, [sampled_near(groups[uid], one_pass, noise=0.0) for uid in update]
        )
    assert (expected - renewed).abs().max() > 1e-3


def stepped(table: Tensor, gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return (table.detach() - LEARNING_RATE * gradient).requires_grad_()


def transitions(scored: ScoredGroup, index: int) -> list[tuple[int, int, int]]:
    """Return current token, next token and position in the columns, for each token of a response."""
    found, previous = [], int(scored.group.prompt_ids[-1])
    tokens = scored.group.response(index)
    for at in range(tokens.start, tokens.stop):
        found.append((previous, int(scored.group.response_ids[at]), at))
        previous = int(scored.group.response_ids[at])
    return found


def sampled_near(scored: ScoredGroup, table: Tensor, *, noise: float = 0.1) -> ScoredGroup:
    """Return the group with the log-probabilities of a table, moved by noise, and a teacher at some distance."""
    logprobs, generator = table.log_softmax(1), np.random.default_rng(5)
    behaviour, teacher = scored.group.behaviour_logprobs.copy(), scored.teacher_scores.logprobs.copy()
    for index in range(scored.group.num_responses):
        for previous, token, at in transitions(scored, index):
            behaviour[at] = logprobs[previous, token].item() + noise * generator.normal()
            if noise:
                teacher[at] = behaviour[at] + 0.6 * generator.normal()
    return replace(
        scored,
        group=replace(scored.group, behaviour_logprobs=behaviour),
        teacher_scores=replace(scored.teacher_scores, logprobs=teacher),
    )


def slow_gradient(table: Tensor, groups: list[ScoredGroup]) -> Tensor:
    """Return the gradient of the loss of one update in the table, token by token: d log p / d logits = onehot - p."""
    gradient, num_responses = torch.zeros_like(table), sum(scored.group.num_responses for scored in groups)
    probabilities = table.softmax(1)
    for scored in groups:
        rewards = scored.rewards.astype(float)
        for index in range(scored.group.num_responses):
            advantage = (rewards[index] - rewards.mean()) / rewards.std() if rewards.std() else 0.0
            own = transitions(scored, index)
            for previous, token, at in own:
                _, slope = token_value_and_slope(
                    probabilities[previous, token].log().item(),
                    float(scored.group.behaviour_logprobs[at]),
                    float(scored.teacher_scores.logprobs[at]),
                    float(advantage),
                    Settings(),
                )
                direction = -probabilities[previous]
                direction[token] += 1
                gradient[previous] -= slope / len(own) / num_responses * direction
    return gradient


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_step_has_all_updates_of_all_passes(passes: int) -> None:
    shards = StepShards(0, [["a"], ["b"]], 2, replace(policy(), passes=passes))
    for uid in "ab":
        shards.add(group(uid))
    assert [row[0].ends_update for row in all_shards(shards)] == [True] * (2 * passes)
