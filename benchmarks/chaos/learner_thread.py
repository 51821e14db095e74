"""A learner of one rank without an engine: it claims, fetches and reports as a rank does."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray.actor import ActorHandle

from actors.experience.batch_shards import BatchShard
from actors.experience.broker import ExperienceBroker
from actors.learner.broker_link import BrokerLink
from actors.learner.group_data import fetch_groups
from pipelines.simulation.stand_ins import publication
from rlad.errors import LostGroupsError


class LearnerThread(threading.Thread):
    """Thread of the learner.

    Attributes:
        trained: Uid and attempt of each group that a step was trained on, by step.
        lost: Number of groups whose data could not be fetched.
        error: Error that ended the thread; None while it runs and after success.
    """

    def __init__(
        self,
        broker: ActorHandle,
        *,
        steps: int,
        commit_every_steps: int = 2,
        on_shard: Callable[[BatchShard], None] = lambda _: None,
    ) -> None:
        """
        Args:
            broker: The broker.
            steps: Number of steps to train.
            commit_every_steps: Number of steps after which it reports a checkpoint.
            on_shard: Called with each shard after its data were fetched.
        """
        super().__init__(daemon=True)
        self._link, self._steps, self._on_shard = BrokerLink(broker), steps, on_shard
        self._commit_every_steps = commit_every_steps
        self.trained: list[list[tuple[str, int]]] = []
        self.lost = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - `train` raises it
            self.error = error

    def _run(self) -> None:
        self._link.report_started([publication(0)])
        for step in range(self._steps):
            self.trained.append(self._train(step))
            self._link.finish_step([publication(step + 1)], {})
            if (step + 1) % self._commit_every_steps == 0:
                self._link.call(ExperienceBroker.commit, step + 1)
        self._link.report_exported()
        while not self._link.call(ExperienceBroker.wait_dismissed):
            pass

    def _train(self, step: int) -> list[tuple[str, int]]:
        groups: list[tuple[str, int]] = []
        index, is_done = 0, False
        while not is_done:
            shard = None
            while shard is None:
                shard = self._link.call(ExperienceBroker.claim, step, 0, index)
            assert isinstance(shard, BatchShard)
            try:
                fetch_groups(shard.groups)
            except LostGroupsError as lost:
                self.lost += len(lost.groups)
                can_go_on = self._link.call(ExperienceBroker.report_lost, step, index, lost.groups)
                if not can_go_on:
                    raise
                continue
            self._on_shard(shard)
            groups += [(uid, group.attempt) for uid, group in shard.groups.items()]
            index, is_done = index + 1, shard.ends_step
        return groups
