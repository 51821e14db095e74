"""A mixture in simulated runs: each step has the shares of the weights, however many workers sample."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from actors.experience.broker import ExperienceBroker
from actors.messages import SampledGroup, SampleRequest
from pipelines.simulation.harness import StandInPools, run_steps, stand_in_prompts
from pipelines.simulation.simulator import SimulatedRollout, SimulatedVerifiers, stand_in_shard_policy
from pipelines.simulation.stand_ins import InProcess, StandInLearner
from pipelines.simulation.workload import Lengths, Speeds
from rlad.config import RunConfig, load_run_config
from rlad.data.order import Mixture, MixtureOrder
from rlad.testing.virtual_time import run_in_virtual_time

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
LENGTHS = Lengths(median=100, p99_over_median=10, longest=1000, group_size=4)
SPEEDS = Speeds(
    token_s=0.01, slots=8, teacher_token_s=1e-5, verdict_s=0.01, learner_token_s=5e-5, update_s=0.1, weights_s=0.1
)
MIXTURE = Mixture(names=("a", "b"), weights=(3, 1), parts=(0,) * 10 + (1,) * 30)
STEPS, PROMPTS = 10, 8


class RecordingRollout(SimulatedRollout):
    """Rollout pool that notes the prompt of each group."""

    def __init__(self, config: RunConfig, workers: int) -> None:
        super().__init__(config, LENGTHS, SPEEDS, workers, None)
        self.prompts: dict[str, str] = {}

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup:
        self.prompts[request.uid] = request.prompt_id
        return await super().sample(request, priority=priority)


async def prompts_by_step(folder: Path, workers: int) -> list[list[str]]:
    """Return the ids of the prompts of each step of a run with this number of rollout workers."""
    config = load_run_config(
        SMOKE,
        [
            *(f"training.steps={STEPS}", f"training.prompts_per_step={PROMPTS}", "training.updates_per_step=1"),
            *("training.max_staleness=2", "rollout.group_size=4", "rollout.max_response_tokens=1000"),
            "learner.micro_batch_tokens=8000",
        ],
    )
    prompts = replace(stand_in_prompts(len(MIXTURE.parts)), mixture=MIXTURE)
    broker = InProcess(ExperienceBroker(str(folder / f"{workers}.sqlite"), stand_in_shard_policy(config), 4))
    rollout = RecordingRollout(config, workers)
    pools = StandInPools(
        rollout=rollout,
        verifiers=SimulatedVerifiers(SPEEDS, 2, LENGTHS.group_size),
        teacher=None,
        update_weights=rollout.update_weights,
    )
    learning = asyncio.create_task(StandInLearner(broker, LENGTHS, SPEEDS).run(STEPS))
    try:
        steps = await run_steps(config, prompts, pools, broker, clock=asyncio.get_running_loop().time)
    finally:
        rollout.close()
        learning.cancel()
        await asyncio.gather(learning, return_exceptions=True)
    return [sorted(rollout.prompts[group.summary.uid] for group in step.groups) for step in steps]


@pytest.mark.parametrize("workers", [1, 5])
def test_steps_hold_the_shares_for_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    found = run_in_virtual_time(prompts_by_step(tmp_path, workers))
    order = MixtureOrder(MIXTURE, 0)
    turns = [order.turn(number) for number in range(STEPS * PROMPTS)]
    expected = [turns[start : start + PROMPTS] for start in range(0, STEPS * PROMPTS, PROMPTS)]
    assert found == [sorted(f"p{turn.record}" for turn in step) for step in expected]
    for step in found:
        shares = Counter(MIXTURE.parts[int(name.removeprefix("p"))] for name in step)
        assert abs(shares[0] - 6) <= 1
        assert abs(shares[1] - 2) <= 1
