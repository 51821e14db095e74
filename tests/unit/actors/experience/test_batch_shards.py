"""Groups of a step become batch shards for the learner's ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.experience.batch_shards import StepShards
from rlad.packing import LossNormalizer

from .experience_groups import all_shards, group, policy, sequences


def test_every_response_is_handed_out_once_in_equally_many_micro_batches_a_rank() -> None:
    shards = StepShards(0, [["a", "b", "c"]], 2, policy(ranks=2, token_budget=60))
    for uid in "abc":
        shards.add(group(uid))
    rows = all_shards(shards, ranks=2)
    assert sorted(sequence for row in rows for shard in row for sequence in sequences(shard)) == [
        (uid, index) for uid in "abc" for index in (0, 1)
    ]
    for row in rows:
        assert len({len(shard.micro_batches) for shard in row}) == 1
    assert [row[0].ends_step for row in rows] == [False] * (len(rows) - 1) + [True]
    assert all(shard.normalizer.num_responses == 6 for row in rows for shard in row)


def test_a_shard_is_formed_as_soon_as_its_groups_fill_all_ranks() -> None:
    shards = StepShards(0, [["a", "b", "c"]], 2, policy(token_budget=60))
    assert shards.shard(0, 0) is None
    shards.add(group("c"))
    first = shards.shard(0, 0)
    assert first is not None
    assert sequences(first) == [("c", 0), ("c", 1)]
    assert not first.ends_update
    shards.add(group("a", lengths=(1, 1)))
    assert shards.shard(0, 1) is None, "22 tokens do not fill a micro-batch of 60"
    shards.add(group("b"))
    last = shards.shard(0, 1)
    assert last is not None
    assert last.ends_step
    assert {uid for uid, _ in sequences(last)} == {"a", "b"}


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac"])
def test_the_update_a_group_belongs_to_does_not_depend_on_when_it_group(order: str) -> None:
    shards = StepShards(0, [["a", "b"], ["c", "d"]], 2, policy())
    for uid in order:
        shards.add(group(uid))
    update_of = {uid: row[0].update for row in all_shards(shards) for uid, _ in sequences(row[0])}
    assert update_of == {"a": 0, "b": 0, "c": 1, "d": 1}


def test_a_later_update_waits_for_the_earlier_one() -> None:
    shards = StepShards(0, [["a"], ["b"]], 2, policy(token_budget=10))
    shards.add(group("b"))
    assert shards.shard(0, 0) is None
    shards.add(group("a"))
    assert [(row[0].update, row[0].ends_update, row[0].ends_step) for row in all_shards(shards)] == [
        (0, True, False),
        (1, True, True),
    ]


def test_groups_with_equal_rewards_cost_no_forward_pass_but_still_count() -> None:
    shards = StepShards(0, [["a", "b"]], 2, policy())
    shards.add(group("a", rewards=(1.0, 1.0)))
    shards.add(group("b"))
    ((shard,),) = all_shards(shards)
    assert {uid for uid, _ in sequences(shard)} == {"b"}
    assert shard.groups.keys() == {"b"}
    assert shard.normalizer.num_responses == 4


def test_an_update_without_any_gradient_still_has_one_backward_pass_on_every_rank() -> None:
    shards = StepShards(0, [["a"]], 2, policy(ranks=2))
    shards.add(group("a", rewards=(0.0, 0.0)))
    ((first, second),) = all_shards(shards, ranks=2)
    assert first.micro_batches == second.micro_batches == [[]]
    assert first.ends_step


def test_empty_responses_are_left_out_and_truncated_ones_by_policy() -> None:
    sampled = group("a", lengths=(0, 5, 7), rewards=(0.0, 1.0, 0.0), truncated=(False, False, True))
    assert policy().trainable_responses(sampled) == [1, 2]
    assert policy(skip_truncated=True).trainable_responses(sampled) == [1]


def test_a_replacement_belongs_to_the_update_of_the_dropped_group() -> None:
    """Updates a, b and c, d; b's place goes to x, which arrives last: the first update waits for it, the second keeps its own."""
    shards = StepShards(0, [["a", "b"], ["c", "d"]], 2, policy())
    for uid in "acd":
        shards.add(group(uid))
    shards.replace("b", by="x")
    assert shards.shard(0, 0) is None
    shards.add(group("x"))
    first, second = (shard for [shard] in all_shards(shards))
    assert ({*first.groups}, {*second.groups}) == ({"a", "x"}, {"c", "d"})
    assert (first.ends_update, second.ends_step) == (True, True)


def test_a_mean_over_tokens_waits_for_all_groups_of_an_update_and_counts_their_tokens() -> None:
    """Also those of a group with equal rewards, which is in no shard; not those of truncated responses where they are masked."""
    shards = StepShards(0, [["a", "b"]], 2, replace(policy(token_budget=1, skip_truncated=True), counts_tokens=True))
    shards.add(group("a", lengths=(4, 5), truncated=(False, True)))
    assert shards.shard(0, 0) is None
    shards.add(group("b", lengths=(1, 2), rewards=(1.0, 1.0)))
    shard = shards.shard(0, 0)
    assert shard is not None
    assert shard.normalizer == LossNormalizer(num_responses=4, num_tokens=4 + 1 + 2)
