"""Stand-ins take the calls of a run. Those of rare tests would otherwise be found out months later."""

from __future__ import annotations

import inspect

import pytest

from actors.rollout.pool import RolloutPool
from actors.teacher.client import TeacherClient
from actors.verifier.reward_pool import VerdictPools
from benchmarks.chaos.stand_in_run import ArraySampler
from pipelines.simulation.losses import SimulatedTeacher
from pipelines.simulation.simulator import SimulatedRollout, SimulatedVerifiers
from pipelines.training.group_pipeline import GroupVerifier, Sampler, Scorer
from tests.end_to_end.learner.seeded_engine import SeededEngine


@pytest.mark.parametrize(
    ("protocol", "method", "stand_ins"),
    [
        (Sampler, "sample", [RolloutPool, SimulatedRollout, SeededEngine, ArraySampler]),
        (GroupVerifier, "verify", [VerdictPools, SimulatedVerifiers, SeededEngine]),
        (Scorer, "score", [TeacherClient, SimulatedTeacher, SeededEngine]),
    ],
)
def test_stand_ins_have_the_parameters_of_the_protocol(protocol: type, method: str, stand_ins: list[type]) -> None:
    expected = inspect.signature(getattr(protocol, method)).parameters
    for stand_in in stand_ins:
        found = inspect.signature(getattr(stand_in, method)).parameters
        assert expected.keys() <= found.keys(), stand_in
        further = [found[name] for name in found.keys() - expected.keys()]
        assert all(each.default is not inspect.Parameter.empty for each in further), stand_in
