"""A run whose broker dies at any call trains on the same groups in the same steps as one whose broker lives."""

from __future__ import annotations

import asyncio
import pickle
import random
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from actors.experience.broker import ExperienceBroker
from actors.messages import VerifierResult, WeightsPublication
from pipelines.simulation.harness import StandInPools, run_steps, stand_in_prompts
from pipelines.simulation.losses import SimulatedTeacher
from pipelines.simulation.simulator import (
    SimulatedRollout,
    SimulatedVerifiers,
    stand_in_result,
    stand_in_shard_policy,
)
from pipelines.simulation.stand_ins import StandInLearner
from pipelines.simulation.workload import Lengths, Speeds
from rlad.config import RunConfig, load_run_config
from rlad.errors import WeightsLostError
from rlad.ledger import Ledger
from rlad.testing.virtual_time import run_in_virtual_time

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
STEPS, PROMPTS = 6, 8
LENGTHS = Lengths(median=100, p99_over_median=3.0, longest=400, group_size=4)
SPEEDS = Speeds(
    token_s=0.01, slots=16, teacher_token_s=1e-4, verdict_s=0.1, learner_token_s=1e-4, update_s=0.5, weights_s=0.5
)


def run_config(*settings: str) -> RunConfig:
    return load_run_config(
        SMOKE,
        [
            f"training.steps={STEPS}",
            f"training.prompts_per_step={PROMPTS}",
            "training.updates_per_step=2",
            f"rollout.group_size={LENGTHS.group_size}",
            *settings,
        ],
    )


class MortalBroker:
    """Handle of a broker that dies at random: before a call, or after it and before its answer.

    Arguments and answers are copied, as between processes.
    """

    def __init__(self, ledger: Path, config: RunConfig, *, mortality: float, seed: int) -> None:
        self._arguments = str(ledger), stand_in_shard_policy(config), config.rollout.group_size
        self._mortality, self._random = mortality, random.Random(seed)
        self._broker = ExperienceBroker(*self._arguments)
        self.deaths: list[str] = []

    def __getattr__(self, method: str) -> Any:
        return _Remote(self, method)

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self._perhaps_die(f"before {method}")
        broker = self._broker
        answer = await getattr(broker, method)(*_copied(arguments))
        self._perhaps_die(f"after {method}")
        if broker is not self._broker:  # another call met its end while this one waited
            raise _dead()
        return _copied(answer)

    def _perhaps_die(self, when: str) -> None:
        if self._random.random() < self._mortality:
            self.deaths.append(when)
            self._broker = ExperienceBroker(*self._arguments, is_restarted=True)
            raise _dead()


class _Remote:
    def __init__(self, handle: MortalBroker, method: str) -> None:
        self._handle, self._method = handle, method

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        return self._handle.call(self._method, arguments)


def _copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def _dead() -> ActorUnavailableError:
    return ActorUnavailableError("the actor is restarting", b"0" * 16)


class SomeEqual(SimulatedVerifiers):
    """Verifiers that find every fifth group correct throughout, so that another group takes its place."""

    seen = 0

    async def verify(self, columns: Any, *, task: str, num_tokens: int) -> VerifierResult:
        self.seen += 1
        result = await super().verify(columns, task=task, num_tokens=num_tokens)
        return (
            stand_in_result(LENGTHS.group_size, elapsed_s=0.1, num_correct=LENGTHS.group_size)
            if (self.seen % 5 == 0)
            else result
        )


async def trained(
    config: RunConfig, broker: MortalBroker, sampler: type[SimulatedRollout] = SimulatedRollout
) -> list[set[str]]:
    """Run all steps. Return the groups that each step was trained on."""
    rollout = sampler(config, LENGTHS, SPEEDS, 2, None)
    pools = StandInPools(
        rollout=rollout,
        verifiers=SomeEqual(SPEEDS, 2, LENGTHS.group_size),
        teacher=SimulatedTeacher(SPEEDS, 1),
        update_weights=rollout.update_weights,
    )
    learning = asyncio.create_task(StandInLearner(broker, LENGTHS, SPEEDS).run(STEPS))
    clock = asyncio.get_running_loop().time
    steps = await run_steps(config, stand_in_prompts(1000), pools, broker, clock=clock)
    await learning
    return [{group.summary.uid for group in step.groups if not group.is_dropped} for step in steps]


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_broker_that_dies_at_random_costs_no_group_and_no_step(tmp_path: Path, staleness: int, seed: int) -> None:
    config = run_config(f"training.max_staleness={staleness}", "training.max_refills=8")
    ledger = tmp_path / "ledger.sqlite"
    broker = MortalBroker(ledger, config, mortality=0.1, seed=seed)
    by_step = run_in_virtual_time(trained(config, broker))
    assert len(broker.deaths) > 20
    assert {death.partition(" ")[0] for death in broker.deaths} == {"before", "after"}
    assert all(len(uids) == PROMPTS for uids in by_step)
    assert len(set.union(*by_step)) == STEPS * PROMPTS
    with closing(Ledger(ledger, read_only=True)) as book:
        counts = book.counts()
    assert (counts.lost, counts.duplicated, counts.trained_steps) == (0, 0, STEPS)
    assert counts.states["committed"] == STEPS * PROMPTS


class WeightsGone(SimulatedRollout):
    """Rollout pool to which the weights of version 2 are lost twice, as when the learner's process ends."""

    updates: list[int] = []  # noqa: RUF012 - filled by the test that uses it

    async def update_weights(self, publication: WeightsPublication) -> None:
        version = publication.manifest.version
        self.updates.append(version)
        if version == 2 and self.updates.count(2) < 3:
            raise WeightsLostError("weights of version 2 were lost with the process that published them")
        await super().update_weights(publication)


@pytest.mark.parametrize("staleness", [0, 1])
def test_weights_that_were_lost_before_the_samplers_had_them_are_taken_again(tmp_path: Path, staleness: int) -> None:
    config = run_config(f"training.max_staleness={staleness}")
    ledger = tmp_path / "ledger.sqlite"
    broker = MortalBroker(ledger, config, mortality=0.0, seed=0)
    WeightsGone.updates = []
    by_step = run_in_virtual_time(trained(config, broker, WeightsGone))
    assert WeightsGone.updates == [0, 1, 2, 2, 2, *range(3, STEPS + 1)]
    assert len(set.union(*by_step)) == STEPS * PROMPTS
