"""The experience broker: where finished groups wait for the learner, and the keeper of the run's ledger.

The driver opens a step with its groups cut into updates (mini-batches) in prompt order, so which update a group belongs to never depends on how
fast it finished. Groups of the update that is being trained are handed out in parts as they arrive, so the learner accumulates gradient while
others are still being sampled; the last part of an update says so. Parts are remembered until a durable checkpoint holds their step: ranks that
restart claim the same parts again. Where the learner sends its weights straight to workers, the broker tells it whom, between two parts.

The broker holds references and small numbers, never token data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from actors.experience.batch_shards import BatchShard, GroupRefs
from actors.experience.transfers import TransferOutcome, TransferQueue, TransferRequest
from actors.messages import WeightsPublication
from rlad.errors import RladError, RunStoppedError
from rlad.ledger import Ledger
from rlad.microbatches import plan_microbatches
from rlad.packing import LossNormalizer

if TYPE_CHECKING:
    from ray.actor import ActorHandle

T = TypeVar("T")

# A waiting caller is answered at least this often, so that it can look at its own deadline and at who else has failed.
LONG_POLL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPolicy:
    """How finished groups become the learner's parts.

    Attributes:
        ranks: data-parallel workers of the learner.
        token_budget: tokens (prompts included) of a rank's micro-batch.
        skip_equal_rewards: leave out groups whose rewards are all equal: the objective gives them exactly zero gradient.
        skip_truncated: leave out responses that hit the token budget.
        counts_tokens: the loss is averaged over tokens, whose number is known only when all groups of an update are there: hand out nothing before.
    """

    ranks: int
    token_budget: int
    skip_equal_rewards: bool
    skip_truncated: bool
    counts_tokens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedGroup:
    """A sampled and scored group: references to its columns, and the small numbers that planning needs.

    Attributes:
        refs: references to the columns of the group, its verdicts and its teacher scores.
        prompt_tokens: tokens of the prompt.
        response_lengths: tokens of each response.
        is_truncated: whether each response hit the token budget.
        rewards: of each response, as advantages are made of them.
    """

    uid: str
    attempt: int
    refs: GroupRefs
    prompt_tokens: int
    response_lengths: tuple[int, ...]
    is_truncated: tuple[bool, ...]
    rewards: tuple[float, ...]

    def trainable(self, policy: ShardPolicy) -> list[int]:
        """Indices of the responses that can have a gradient."""
        if policy.skip_equal_rewards and min(self.rewards) == max(self.rewards):
            return []
        return [
            index
            for index, length in enumerate(self.response_lengths)
            if length > 0 and not (policy.skip_truncated and self.is_truncated[index])
        ]

    def counted_tokens(self, policy: ShardPolicy) -> int:
        """Response tokens that a mean over tokens is over: also of responses that can have no gradient, not of those masked for their length."""
        return sum(
            length
            for length, truncated in zip(self.response_lengths, self.is_truncated, strict=True)
            if not (policy.skip_truncated and truncated)
        )


@dataclass(slots=True)
class _Update:
    """One optimizer step's groups on their way to the learner."""

    uids: list[str]
    num_responses: int
    arrived: dict[str, FinishedGroup] = field(default_factory=dict)
    handed_out: set[str] = field(default_factory=set)
    parts: list[list[BatchShard]] = field(default_factory=list)  # by part, then by rank

    @property
    def is_complete(self) -> bool:
        return bool(self.parts) and self.parts[-1][0].ends_update


class StepShards:
    """The parts of one training step: pure bookkeeping, so that it can be tested without a cluster."""

    def __init__(self, step: int, updates: Sequence[Sequence[str]], group_size: int, policy: ShardPolicy) -> None:
        self.step = step
        self._policy = policy
        self._updates = [_Update(uids=list(uids), num_responses=len(uids) * group_size) for uids in updates]
        self._update_of = {uid: update for update in self._updates for uid in update.uids}

    @property
    def uids(self) -> list[str]:
        return list(self._update_of)

    def add(self, group: FinishedGroup) -> None:
        self._update_of[group.uid].arrived[group.uid] = group

    def replace(self, uid: str, by: str) -> None:
        """Give the place of a group that has not arrived to another: which update it is of does not depend on when that happens."""
        update = self._update_of.pop(uid)
        update.uids[update.uids.index(uid)] = by
        self._update_of[by] = update

    def part(self, rank: int, index: int) -> BatchShard | None:
        """The part `index` of this step for `rank`, formed now if enough groups are there. None: come back later."""
        while len(parts := [part for update in self._updates for part in update.parts]) <= index:
            if not self._form_next():
                return None
        return parts[index][rank]

    def _form_next(self) -> bool:
        """Hand out what has arrived of the first unfinished update, if it fills every rank's micro-batch or is all there is to come."""
        number, update = next(((n, u) for n, u in enumerate(self._updates) if not u.is_complete), (-1, None))
        if update is None:
            return False
        fresh = [update.arrived[uid] for uid in update.uids if uid in update.arrived and uid not in update.handed_out]
        is_last = len(update.arrived) == len(update.uids)
        sequences = [(group, index) for group in fresh for index in group.trainable(self._policy)]
        lengths = [group.prompt_tokens + group.response_lengths[index] for group, index in sequences]
        if not is_last and (
            self._policy.counts_tokens or sum(lengths) < self._policy.ranks * self._policy.token_budget
        ):
            return False
        plan = plan_microbatches(lengths, token_budget=self._policy.token_budget, ranks=self._policy.ranks)
        if is_last and not any(plan) and not any(part[0].micro_batches for part in update.parts):
            plan = [
                [[]] for _ in range(self._policy.ranks)
            ]  # an update without any gradient still needs one backward pass to step on
        update.parts.append([self._shard_of_rank(number, update, is_last, sequences, batches) for batches in plan])
        update.handed_out.update(group.uid for group in fresh)
        return True

    def _shard_of_rank(
        self,
        number: int,
        update: _Update,
        is_last: bool,
        sequences: list[tuple[FinishedGroup, int]],
        batches: list[list[int]],
    ) -> BatchShard:
        used = {sequences[index][0].uid: sequences[index][0].refs for batch in batches for index in batch}
        return BatchShard(
            step=self.step,
            update=number,
            index=sum(len(earlier.parts) for earlier in self._updates),
            ends_update=is_last,
            ends_step=is_last and number == len(self._updates) - 1,
            size=LossNormalizer(num_responses=update.num_responses, num_tokens=self._num_tokens(update)),
            micro_batches=[[(sequences[index][0].uid, sequences[index][1]) for index in batch] for batch in batches],
            groups=used,
        )

    def _num_tokens(self, update: _Update) -> int | None:
        return (
            sum(group.counted_tokens(self._policy) for group in update.arrived.values())
            if self._policy.counts_tokens
            else None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What the learner made of a step, or of nothing yet (`metrics` empty) when it has just started or restarted.

    Attributes:
        version: trained steps so far, the version of the weights.
        publications: the published weights, in a list: whoever hands them on takes them out, for what anybody refers to stays in the object store.
        metrics: of the step.
    """

    version: int
    publications: list[WeightsPublication]
    metrics: dict[str, float]


class ExperienceBroker:
    """The actor's body. Every waiting method answers None after `LONG_POLL_S`; the caller asks again until its own deadline."""

    def __init__(self, ledger_path: str, policy: ShardPolicy, group_size: int) -> None:
        self._ledger = Ledger(ledger_path)
        self._policy = policy
        self._group_size = group_size
        self._steps: dict[int, StepShards] = {}
        self._started: StepReport | None = None
        self._reports: dict[int, StepReport] = {}
        self._awaited = 0  # the newest version that the driver has asked for: it has all before
        self._stopped: str | None = None
        self._is_exported = self._is_dismissed = False
        self._transfers = TransferQueue()
        self._changed = asyncio.Condition()

    async def answer(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Several calls of methods below that do not wait, in order, as one: (method, arguments) each.

        An error of ours takes the place of its call's result. Any other is a fault that ends the run: it is raised, whatever call it came from.
        """
        answers: list[Any] = []
        for method, arguments in calls:
            try:
                answers.append(await getattr(self, method)(*arguments))
            except RladError as error:
                answers.append(error)
        return answers

    async def reopen(self, checkpoint: int) -> list[str]:
        """A new driver takes over from `checkpoint`: what came later will be issued again. Returns the groups that came before."""
        return self._ledger.reopen(checkpoint)

    async def open_step(self, step: int, updates: list[list[tuple[str, str]]]) -> dict[str, int]:
        """Issue a step's groups, (uid, prompt id) each, cut into updates. Returns each uid's attempt number."""
        self._raise_if_stopped()
        attempts = self._ledger.issue(step, [group for update in updates for group in update])
        async with self._changed:
            self._steps[step] = StepShards(
                step, [[uid for uid, _ in update] for update in updates], self._group_size, self._policy
            )
            self._changed.notify_all()
        return attempts

    async def reissue(self, uid: str) -> int:
        return self._ledger.reissue(uid)

    async def refill(self, step: int, dropped: str, attempt: int, uid: str, prompt_id: str) -> int:
        """Drop a sampled group and issue another in its place. Returns the other's attempt number."""
        self._ledger.drop(dropped, attempt)
        attempts = self._ledger.issue(step, [(uid, prompt_id)])
        self._steps[step].replace(dropped, uid)
        return attempts[uid]

    async def record_sampled(self, uid: str, attempt: int) -> None:
        self._ledger.record_sampled(uid, attempt)

    async def add(self, step: int, group: FinishedGroup) -> None:
        """A group is sampled and scored. Refuses a stale attempt."""
        self._ledger.record_scored(group.uid, group.attempt)
        async with self._changed:
            self._steps[step].add(group)
            self._changed.notify_all()

    async def claim(self, step: int, rank: int, index: int) -> BatchShard | None:
        """BatchShard `index` of `step` for `rank`; None when it is not there yet."""

        def find() -> BatchShard | None:
            return self._steps[step].part(rank, index) if step in self._steps else None

        part = await self._wait_for(find)
        if part is not None:
            self._ledger.record_claimed(part.groups)
        return part

    async def report_started(self, step: int, publications: list[WeightsPublication]) -> None:
        """The learner's ranks stand at `step`, fresh or from a checkpoint: training after it never happened."""
        async with self._changed:
            self._ledger.rewind(step)
            self._transfers.sender_restarted()
            self._reports = {version: report for version, report in self._reports.items() if version <= step}
            if step in self._reports:  # with the process that published them before, its objects are gone
                self._reports[step] = replace(self._reports[step], publications=list(publications))
            self._started = StepReport(version=step, publications=publications, metrics={})
            self._forget_weights()
            self._changed.notify_all()

    async def finish_step(self, step: int, publications: list[WeightsPublication], metrics: dict[str, float]) -> None:
        """Every update of `step` is applied; the weights of version `step + 1` are published."""
        uids = self._steps[step].uids
        self._ledger.record_claimed(
            uids
        )  # groups without any gradient were in no part, but they are trained on like the others
        self._ledger.record_trained(step, uids)
        async with self._changed:
            self._reports[step + 1] = StepReport(version=step + 1, publications=publications, metrics=metrics)
            self._forget_weights()
            self._changed.notify_all()

    async def commit(self, checkpoint: int) -> None:
        """A durable checkpoint holds the steps before `checkpoint`: their data can go."""
        self._ledger.commit(checkpoint)
        self._steps = {step: parts for step, parts in self._steps.items() if step >= checkpoint}

    async def wait_started(self) -> StepReport | None:
        return await self._wait_for(lambda: self._started)

    async def wait_finished(self, step: int) -> StepReport | None:
        self._awaited = max(self._awaited, step + 1)
        self._forget_weights()
        return await self._wait_for(lambda: self._reports.get(step + 1))

    async def report_exported(self) -> None:
        """The student is trained and exported. Its ranks stay until they are dismissed: what they have published ends with them."""
        async with self._changed:
            self._is_exported = True
            self._changed.notify_all()

    async def wait_exported(self) -> bool | None:
        return await self._wait_for(lambda: self._is_exported or None)

    async def dismiss(self) -> None:
        """Nobody will ask for published weights again: the ranks may end."""
        async with self._changed:
            self._is_dismissed = True
            self._changed.notify_all()

    async def wait_dismissed(self) -> bool | None:
        return await self._wait_for(lambda: self._is_dismissed or None)

    async def ask_transfer(self, version: int, workers: Mapping[str, ActorHandle]) -> int:
        """Ask the learner to send its weights, once it holds this version. Returns the request's number."""
        async with self._changed:
            number = self._transfers.ask(version, workers)
            self._changed.notify_all()
        return number

    async def wait_transfer(self, number: int) -> TransferOutcome | None:
        """What became of a request; told once."""
        return await self._wait_for(lambda: self._transfers.outcome(number))

    async def begin_transfer(self, number: int) -> None:
        """The learner begins to send."""
        self._transfers.begin(number)

    async def report_transfer(self, number: int, outcome: TransferOutcome) -> None:
        async with self._changed:
            self._transfers.finish(number, outcome)
            self._changed.notify_all()

    async def transfer_or_delivered(self, held: int) -> TransferRequest | bool | None:
        """A request for the version that the learner holds; True when the driver has asked for it, and has nothing more to ask at present."""
        return await self._wait_for(lambda: self._transfers.next(held) or self._transfers.is_asked_for(held) or None)

    async def transfer_or_part(self, held: int, step: int, index: int) -> TransferRequest | bool | None:
        """A request for the version that the learner holds; True when the part is there."""

        def find() -> TransferRequest | bool | None:
            return (
                self._transfers.next(held)
                or (step in self._steps and self._steps[step].part(0, index) is not None)
                or None
            )

        return await self._wait_for(find)

    async def transfer_or_dismissed(self, held: int) -> TransferRequest | bool | None:
        """A request for the version that the learner holds; True when nobody will ask for weights again."""
        return await self._wait_for(lambda: self._transfers.next(held) or self._is_dismissed or None)

    async def counts(self) -> dict[str, int]:
        return self._ledger.counts().as_dict()

    async def stop(self, reason: str) -> None:
        """Whoever waits here, now or later, is told to stop."""
        async with self._changed:
            self._stopped = reason
            self._changed.notify_all()

    def _forget_weights(self) -> None:
        """Whose version the driver has: every one that is referred to takes the room of a model in the object store. A learner that restarts makes some of
        them once more."""
        self._reports = {version: report for version, report in self._reports.items() if version >= self._awaited}
        if self._started is not None and self._started.version < self._awaited:
            self._started.publications.clear()

    async def _wait_for(self, find: Callable[[], T | None]) -> T | None:
        clock = (
            asyncio.get_running_loop().time
        )  # not the wall's: in the simulator it jumps, and every change in between would wait on from there
        deadline = clock() + LONG_POLL_S
        async with self._changed:
            while True:
                self._raise_if_stopped()
                found = find()
                remaining = deadline - clock()
                if found is not None or remaining <= 0:
                    return found
                try:
                    await asyncio.wait_for(self._changed.wait(), remaining)
                except TimeoutError:
                    return find()

    def _raise_if_stopped(self) -> None:
        if self._stopped is not None:
            raise RunStoppedError(self._stopped)
