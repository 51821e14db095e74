"""Batch shards: how the groups of a step become the learner's work, rank by rank. Pure bookkeeping, without Ray."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from actors.experience.group import ExperienceGroup
from rlad.microbatches import plan_microbatches
from rlad.packing import LossNormalizer


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShard:
    """A portion of one optimizer update, for one rank.

    Every rank gets the same number of micro-batches in a shard, because ZeRO reduces gradients in each backward pass
    and all ranks must take part.

    Attributes:
        step: Training step.
        update: Optimizer update within the step, counted over its passes.
        index: Shard number within the step, counted over its updates.
        ends_update: The optimizer steps after this shard.
        ends_step: This is the last shard of the step.
        normalizer: Counts over the whole update and all ranks, by which the loss is normalised.
        micro_batches: Sequences of each micro-batch as (group uid, response index); an empty list is a dummy batch.
        groups: Groups that the micro-batches name, by uid.
    """

    step: int
    update: int
    index: int
    ends_update: bool
    ends_step: bool
    normalizer: LossNormalizer
    micro_batches: list[list[tuple[str, int]]]
    groups: dict[str, ExperienceGroup]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRequest:
    """Answer to a claim that asks the ranks to write a checkpoint of the trained steps and to end.

    Attributes:
        reason: Reason, for error messages.
    """

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPolicy:
    """Rules by which groups become batch shards.

    Attributes:
        ranks: Ranks of the learner, or sequence groups of them, that train different micro-batches.
        token_budget: Tokens (prompts included) of a micro-batch.
        skip_equal_rewards: Leave out groups whose judged rewards are all equal: the objective gives them exactly zero
            gradient.
        skip_truncated: Leave out responses that reached the token budget.
        counts_tokens: The loss is averaged over tokens, whose number is known only when all groups of an update have
            arrived: form no shard before.
        passes: Passes over the updates of a step. Each pass repeats them, with the same groups.
    """

    ranks: int
    token_budget: int
    skip_equal_rewards: bool
    skip_truncated: bool
    counts_tokens: bool = False
    passes: int = 1

    def trainable_responses(self, group: ExperienceGroup) -> list[int]:
        """Indices of the responses that can have a gradient: of the judged ones, unless their rewards are equal."""
        is_judged = group.verdicts.is_judged
        judged = [reward for reward, judged in zip(group.rewards, is_judged, strict=True) if judged]
        if not judged or (self.skip_equal_rewards and min(judged) == max(judged)):
            return []
        summary = group.summary
        return [
            index
            for index, length in enumerate(summary.response_lengths)
            if length > 0 and is_judged[index] and not (self.skip_truncated and summary.is_truncated[index])
        ]

    def counted_tokens(self, group: ExperienceGroup) -> int:
        """Count the response tokens of a mean over tokens: of judged responses that are not masked, with those of zero
        gradient.
        """
        summary = group.summary
        return sum(
            length
            for length, truncated, judged in zip(
                summary.response_lengths, summary.is_truncated, group.verdicts.is_judged, strict=True
            )
            if judged and not (self.skip_truncated and truncated)
        )


@dataclass(slots=True)
class _Update:
    """Groups of one optimizer update, as they arrive and are handed out."""

    uids: list[str]
    num_responses: int
    arrived: dict[str, ExperienceGroup] = field(default_factory=dict)
    parts: list[list[str]] = field(default_factory=list)  # groups of each shard
    shards: list[list[BatchShard]] = field(default_factory=list)  # by shard, then by rank

    @property
    def handed_out(self) -> set[str]:
        return {uid for part in self.parts for uid in part}

    @property
    def is_complete(self) -> bool:
        return bool(self.shards) and self.shards[-1][0].ends_update


class StepShards:
    """Forms the batch shards of one training step from its groups."""

    def __init__(
        self,
        step: int,
        updates: Sequence[Sequence[str]],
        group_size: int,
        policy: ShardPolicy,
        *,
        recorded: Sequence[tuple[int, list[str]]] = (),
    ) -> None:
        """
        Args:
            step: Number of the step.
            updates: Group uids of each optimizer update of a pass, in prompt order.
            group_size: Responses of a group.
            policy: Rules by which shards are formed.
            recorded: Update and groups of the first shards, which an earlier broker has handed out. They are formed
                with these groups, regardless of which others have arrived.
        """
        self.step = step
        self._policy = policy
        self._recorded = list(recorded)
        self._updates = [
            _Update(uids=list(uids), num_responses=len(uids) * group_size)
            for _ in range(policy.passes)
            for uids in updates
        ]
        self._updates_of: dict[str, list[_Update]] = {}
        for update in self._updates:
            for uid in update.uids:
                self._updates_of.setdefault(uid, []).append(update)

    @property
    def uids(self) -> list[str]:
        return list(self._updates_of)

    def add(self, group: ExperienceGroup) -> None:
        """Add a group that has arrived."""
        for update in self._updates_of[group.uid]:
            update.arrived[group.uid] = group

    def replace(self, uid: str, by: str) -> None:
        """Put another group in the place of one that has not arrived. The updates it belongs to stay the same."""
        if uid not in self._updates_of and by in self._updates_of:  # repeated, because the answer was lost
            return
        self._updates_of[by] = self._updates_of.pop(uid)
        for update in self._updates_of[by]:
            update.uids[update.uids.index(uid)] = by

    def shard(self, rank: int, index: int) -> BatchShard | None:
        """Return shard `index` for `rank`, and form it if enough groups have arrived. None: ask again later."""
        while len(shards := [shard for update in self._updates for shard in update.shards]) <= index:
            if not self._form_next(len(shards)):
                return None
        return shards[index][rank]

    def groups_of(self, index: int) -> tuple[int, list[str]]:
        """Return the update and all groups of a formed shard, those without a trainable response included."""
        return [(number, part) for number, update in enumerate(self._updates) for part in update.parts][index]

    def first_with(self, uids: Collection[str]) -> int | None:
        """Return the number of the first formed shard that contains one of the groups; None if none does."""
        parts = [part for update in self._updates for part in update.parts]
        return next((index for index, part in enumerate(parts) if not set(uids).isdisjoint(part)), None)

    def dissolve(self, first: int, uids: Collection[str]) -> None:
        """Take back the shards from number `first` on, and groups whose data are lost.

        The other groups of these shards will be in new shards, and so will the lost ones when they arrive again.

        Args:
            first: Number of a shard. No earlier one contains a lost group.
            uids: The lost groups.
        """
        self._recorded = self._recorded[:first]
        for update in self._updates:
            kept = min(max(first, 0), len(update.shards))
            del update.shards[kept:], update.parts[kept:]
            first -= kept
            for uid in uids:
                update.arrived.pop(uid, None)

    def is_between_updates(self, index: int) -> bool:
        """Return whether an update of the step, but not the last one, is complete before shard `index`."""
        if index:
            self.shard(0, index - 1)  # a restarted broker has not formed it again yet
        earlier = [shard[0] for update in self._updates for shard in update.shards][:index]
        return any(shard.ends_update for shard in earlier)

    def _form_next(self, index: int) -> bool:
        """Form a shard of the first incomplete update if its new groups fill all ranks or are its last.

        A shard that an earlier broker has handed out is formed as soon as its groups have arrived.
        """
        number, update = next(((n, u) for n, u in enumerate(self._updates) if not u.is_complete), (-1, None))
        if update is None:
            return False
        policy, handed_out = self._policy, update.handed_out
        is_recorded = index < len(self._recorded)
        candidates = self._recorded[index][1] if is_recorded else update.uids
        fresh = [update.arrived[uid] for uid in candidates if uid in update.arrived and uid not in handed_out]
        is_last = len(handed_out) + len(fresh) == len(update.uids)
        if is_recorded:
            return len(fresh) == len(candidates) and self._form(number, update, fresh, is_last=is_last)
        tokens = sum(
            group.summary.prompt_tokens + group.summary.response_lengths[response]
            for group in fresh
            for response in policy.trainable_responses(group)
        )
        if not is_last and (policy.counts_tokens or tokens < policy.ranks * policy.token_budget):
            return False
        return self._form(number, update, fresh, is_last=is_last)

    def _form(self, number: int, update: _Update, groups: list[ExperienceGroup], *, is_last: bool) -> bool:
        """Form the next shard of an update from groups. Return True."""
        policy = self._policy
        sequences = [(group, index) for group in groups for index in policy.trainable_responses(group)]
        lengths = [group.summary.prompt_tokens + group.summary.response_lengths[index] for group, index in sequences]
        plan = plan_microbatches(lengths, token_budget=policy.token_budget, ranks=policy.ranks)
        if is_last and not any(plan) and not any(shard[0].micro_batches for shard in update.shards):
            # An update without any gradient still needs one backward pass to step on.
            plan = [[[]] for _ in range(policy.ranks)]
        update.shards.append([self._shard_of_rank(number, update, is_last, sequences, batches) for batches in plan])
        update.parts.append([group.uid for group in groups])
        return True

    def _shard_of_rank(
        self,
        number: int,
        update: _Update,
        is_last: bool,
        sequences: list[tuple[ExperienceGroup, int]],
        batches: list[list[int]],
    ) -> BatchShard:
        return BatchShard(
            step=self.step,
            update=number,
            index=sum(len(earlier.shards) for earlier in self._updates),
            ends_update=is_last,
            ends_step=is_last and number == len(self._updates) - 1,
            normalizer=LossNormalizer(num_responses=update.num_responses, num_tokens=self._num_tokens(update)),
            micro_batches=[[(sequences[index][0].uid, sequences[index][1]) for index in batch] for batch in batches],
            groups={sequences[index][0].uid: sequences[index][0] for batch in batches for index in batch},
        )

    def _num_tokens(self, update: _Update) -> int | None:
        if not self._policy.counts_tokens:
            return None
        return sum(self._policy.counted_tokens(group) for group in update.arrived.values())
