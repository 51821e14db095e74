"""Groups, shard policies and shards for the tests of this folder."""

from __future__ import annotations

import numpy as np

from actors.experience.batch_shards import BatchShard, ShardPolicy, StepShards
from actors.experience.group import ExperienceGroup
from actors.messages import GroupSummary
from rlad.contracts import Verdicts


def policy(
    *, ranks: int = 1, token_budget: int = 100, skip_equal_rewards: bool = True, skip_truncated: bool = False
) -> ShardPolicy:
    return ShardPolicy(
        ranks=ranks, token_budget=token_budget, skip_equal_rewards=skip_equal_rewards, skip_truncated=skip_truncated
    )


def group(
    uid: str,
    *,
    lengths: tuple[int, ...] = (20, 20),
    rewards: tuple[float, ...] = (0.0, 1.0),
    truncated: tuple[bool, ...] = (False, False),
    attempt: int = 0,
) -> ExperienceGroup:
    verdicts = Verdicts(
        uid=uid,
        attempt=attempt,
        rewards=np.array(rewards, np.float32),
        outcomes=np.zeros(len(rewards), np.uint8),
        elapsed_s=np.zeros(len(rewards), np.float32),
    )
    summary = GroupSummary(
        uid=uid,
        attempt=attempt,
        prompt_tokens=10,
        response_lengths=lengths,
        is_truncated=truncated,
        tokens_by_version={0: sum(lengths)},
    )
    return ExperienceGroup(summary=summary, columns=f"group {uid}", verdicts=verdicts, rewards=rewards)


def sequences(shard: BatchShard) -> list[tuple[str, int]]:
    return sorted(sequence for batch in shard.micro_batches for sequence in batch)


def all_shards(shards: StepShards, ranks: int = 1) -> list[list[BatchShard]]:
    """All shards that can be formed, by shard and then by rank."""
    collected: list[list[BatchShard]] = []
    while True:
        row = [shards.shard(rank, len(collected)) for rank in range(ranks)]
        if row[0] is None:
            return collected
        collected.append([shard for shard in row if shard is not None])
