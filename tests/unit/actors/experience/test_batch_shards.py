"""Groups of a step become batch shards for the learner's ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.experience.batch_shards import BatchShard, StepShards
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
def test_the_update_of_a_group_does_not_depend_on_the_order_of_arrival(order: str) -> None:
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
    """In updates (a, b) and (c, d), x replaces b and arrives last. The first update waits for it."""
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
    """Tokens of groups with equal rewards count, although in no shard; those of masked responses do not."""
    shards = StepShards(0, [["a", "b"]], 2, replace(policy(token_budget=1, skip_truncated=True), counts_tokens=True))
    shards.add(group("a", lengths=(4, 5), truncated=(False, True)))
    assert shards.shard(0, 0) is None
    shards.add(group("b", lengths=(1, 2), rewards=(1.0, 1.0)))
    shard = shards.shard(0, 0)
    assert shard is not None
    assert shard.normalizer == LossNormalizer(num_responses=4, num_tokens=4 + 1 + 2)


def uids_of(shard: BatchShard | None) -> set[str]:
    assert shard is not None
    return {uid for uid, _ in sequences(shard)}


def test_dissolved_shards_are_formed_again_without_the_lost_group_which_comes_back_later() -> None:
    """Each group of 60 tokens fills a shard. Of shards {a}, {b}, {c} the second is lost before a rank trains on it."""
    shards = StepShards(0, [["a", "b", "c", "d"]], 2, policy(token_budget=60))
    for number, uid in enumerate("abc"):
        shards.add(group(uid))
        assert uids_of(shards.shard(0, number)) == {uid}
    assert shards.first_with({"b", "c"}) == 1
    shards.dissolve(1, {"b"})
    assert shards.first_with({"b"}) is None
    assert uids_of(shards.shard(0, 0)) == {"a"}
    assert uids_of(shards.shard(0, 1)) == {"c"}
    shards.add(group("d"))
    last_but_one = shards.shard(0, 2)
    assert last_but_one is not None
    assert (uids_of(last_but_one), last_but_one.ends_update) == ({"d"}, False)
    assert shards.shard(0, 3) is None
    shards.add(group("b", attempt=1))
    last = shards.shard(0, 3)
    assert last is not None
    assert (uids_of(last), last.ends_step, last.groups["b"].attempt, last.index) == ({"b"}, True, 1, 3)


def test_loss_in_one_update_dissolves_the_shards_of_the_later_ones_too() -> None:
    """Their numbers may change: the first update has one shard more when its lost group comes back late."""
    shards = StepShards(0, [["a", "b"], ["c"]], 2, policy(token_budget=60))
    for uid in "abc":
        shards.add(group(uid))
    assert [uids_of(row[0]) for row in all_shards(shards)] == [{"a", "b"}, {"c"}]
    shards.dissolve(0, {"b"})
    assert uids_of(shards.shard(0, 0)) == {"a"}
    assert shards.shard(0, 1) is None
    shards.add(group("b", attempt=1))
    rows = all_shards(shards)
    assert [(row[0].update, uids_of(row[0]), row[0].index) for row in rows] == [
        (0, {"a"}, 0),
        (0, {"b"}, 1),
        (1, {"c"}, 2),
    ]


def test_recorded_shards_are_formed_with_the_same_groups_at_any_time() -> None:
    """The first broker handed out {c} and then {a, b} of update (a, b, c), and {e} of (d, e)."""
    updates, rules = [["a", "b", "c"], ["d", "e"]], policy(token_budget=60)
    before = StepShards(0, updates, 2, rules)
    handed_out = []
    for arrived in ("c", "ab", "e"):
        for uid in arrived:
            before.add(group(uid))
        handed_out.append(before.shard(0, len(handed_out)))
    recorded = [before.groups_of(number) for number in range(3)]
    assert recorded == [(0, ["c"]), (0, ["a", "b"]), (1, ["e"])]

    after = StepShards(0, updates, 2, rules, recorded=recorded)
    for uid in "abd":
        after.add(group(uid))
    assert after.shard(0, 0) is None, "the first shard has group c, which the driver has not handed over yet"
    for uid in "ce":
        after.add(group(uid))
    for number, earlier in enumerate(handed_out):
        again = after.shard(0, number)
        assert again is not None
        assert earlier is not None
        assert (again.micro_batches, again.index, again.ends_update, again.ends_step) == (
            earlier.micro_batches,
            earlier.index,
            earlier.ends_update,
            earlier.ends_step,
        )
    last = after.shard(0, 3)
    assert last is not None
    assert (uids_of(last), last.ends_step) == ({"d"}, True)


def test_repeated_replacement_changes_nothing() -> None:
    shards = StepShards(0, [["a", "b"]], 2, policy())
    for _ in range(2):
        shards.replace("b", by="x")
    assert shards.uids == ["a", "x"]
