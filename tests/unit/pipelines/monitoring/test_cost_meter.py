"""Cost of a run in virtual time: scaling, attempts, a killed driver, and the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.pool.workers import PoolState
from pipelines.cluster.resources import demand_by_pool
from pipelines.monitoring.cost_meter import CostMeter, require_budget
from pipelines.run.cost import read_cost
from pipelines.run.directory import RunDirectory
from rlad.config import RunConfig, load_run_config
from rlad.errors import ConfigError, CorruptFileError, StopRequestedError
from rlad.testing.virtual_time import run_in_virtual_time

# Per hour: 2 x 2 + 4 x 1 + 2 = 10 GPUs, and 2 x 3 + 4 x 1 + 1 + 2 x 0.5 = 12 CPUs.
SETTINGS = (
    "rollout.workers=2",
    "rollout.gpus_per_worker=2",
    "rollout.cpus_per_worker=3",
    "learner.ranks=4",
    "learner.gpus_per_rank=1",
    "learner.cpus_per_rank=1",
    "teacher.gpus_per_replica=2",
    "teacher.cpus_per_replica=1",
    "verifier_pool.workers=2",
    "verifier_pool.cpus_per_worker=0.5",
)
# The meter reads the pools' sizes every second, so a change counts up to a second late: 2 GPUs for 1 s.
SECOND = 2 / 3600


class Pool:
    """Pool with a size that tests set."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes

    def state(self) -> PoolState:
        return PoolState(**{"target": 0, "ready": 0, "starting": 0, "draining": 0} | self.sizes)

    def resize(self, size: int, /) -> None:
        raise AssertionError("the meter resizes no pool")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def config_of(*settings: str) -> RunConfig:
    return load_run_config(Path("configs/smoke_gpu.yaml"), [*SETTINGS, *settings])


def attempt(
    config: RunConfig, run: RunDirectory, *, hours: float, warn: Callable[[str], None] = lambda _: None
) -> None:
    """Reserve the planned pools for some hours."""

    async def reserve() -> None:
        meter = CostMeter(config, run, on_warning=warn)
        async with meter.running():
            with meter.reserving(demand_by_pool(config)):
                await asyncio.sleep(3600 * hours)
            await asyncio.sleep(60)  # without a reservation, time costs nothing

    run_in_virtual_time(reserve())


def test_hours_of_the_planned_pools_by_hand(run: RunDirectory) -> None:
    attempt(config_of("cost.price_per_gpu_hour=2", "cost.price_per_cpu_hour=0.1"), run, hours=1.5)
    cost = read_cost(run)
    assert cost is not None
    assert cost.total.gpu_hours == pytest.approx(15)
    assert cost.total.cpu_hours == pytest.approx(18)
    assert cost.total.amount == pytest.approx(15 * 2 + 18 * 0.1)
    assert {pool: (hours.gpu, hours.cpu) for pool, hours in cost.pools.items()} == {
        "rollout": (pytest.approx(6), pytest.approx(9)),
        "learner": (pytest.approx(6), pytest.approx(6)),
        "teacher": (pytest.approx(3), pytest.approx(1.5)),
        "verifier": (0, pytest.approx(1.5)),
    }


def test_a_shared_teacher_is_not_a_cost_of_the_run() -> None:
    shared = load_run_config(Path("configs/smoke_cpu.yaml"), ["teacher.service=kk"])
    assert set(demand_by_pool(shared)) == {"rollout", "learner", "verifier"}


def test_live_scaling_by_hand(run: RunDirectory) -> None:
    async def scale() -> None:
        meter, rollout = CostMeter(config_of(), run, on_warning=print), Pool(ready=2)
        async with meter.running():
            with meter.reserving(demand_by_pool(config_of())):
                meter.follow({"rollout": rollout})
                await asyncio.sleep(1800)  # 2 workers
                rollout.sizes = {"ready": 2, "starting": 3}
                await asyncio.sleep(1800)  # 5 workers: new ones hold their GPUs while they start
                rollout.sizes = {"ready": 1, "draining": 1}
                await asyncio.sleep(3600)  # 2 workers: one that drains holds its GPUs until it is gone
                rollout.sizes = {"ready": 1}
                await asyncio.sleep(3600)  # 1 worker

    run_in_virtual_time(scale())
    cost = read_cost(run)
    assert cost is not None
    workers_hours = 2 * 0.5 + 5 * 0.5 + 2 * 1 + 1 * 1
    assert cost.pools["rollout"].gpu == pytest.approx(2 * workers_hours, abs=3 * SECOND)
    assert cost.pools["rollout"].cpu == pytest.approx(3 * workers_hours, abs=5 * SECOND)
    assert cost.pools["learner"].gpu == pytest.approx(4 * 3)


def test_attempts_add_up_and_a_new_price_holds_for_all_hours(run: RunDirectory) -> None:
    attempt(config_of("cost.price_per_gpu_hour=2"), run, hours=1)
    attempt(config_of("cost.price_per_gpu_hour=3", "cost.currency=EUR"), run, hours=0.5)
    cost = read_cost(run)
    assert cost is not None
    assert cost.attempts == 2
    assert cost.total.gpu_hours == pytest.approx(15)
    assert (cost.total.amount, cost.total.currency) == (pytest.approx(45), "EUR")


def test_a_killed_driver_loses_at_most_ten_seconds(run: RunDirectory, tmp_path: Path) -> None:
    after_kill = RunDirectory(tmp_path / "after-kill")
    after_kill.path.mkdir()

    async def be_killed() -> None:
        meter = CostMeter(config_of(), run, on_warning=print)
        async with meter.running():
            with meter.reserving(demand_by_pool(config_of())):
                await asyncio.sleep(3600 + 9.5)
                after_kill.cost.write_bytes(run.cost.read_bytes())  # all that a kill at this moment leaves

    run_in_virtual_time(be_killed())
    attempt(config_of(), after_kill, hours=1)
    cost = read_cost(after_kill)
    assert cost is not None
    assert cost.total.gpu_hours == pytest.approx(20, abs=10 * 10 / 3600)


def test_a_step_records_the_cost_and_returns_its_figures(run: RunDirectory) -> None:
    async def step() -> dict[str, float]:
        config = config_of("cost.price_per_gpu_hour=2", "cost.budget.gpu_hours=40", "cost.budget.amount=100")
        meter = CostMeter(config, run, on_warning=print)
        async with meter.running():
            with meter.reserving(demand_by_pool(config)):
                await asyncio.sleep(3605)
                figures = meter.record_step()
                recorded = read_cost(run)
                assert recorded is not None
                assert recorded.total.gpu_hours == figures["cost/gpu_hours"]
                return figures

    hours = 3605 / 3600
    assert run_in_virtual_time(step()) == {
        "cost/gpu_hours": pytest.approx(10 * hours),
        "cost/cpu_hours": pytest.approx(12 * hours),
        "cost/amount": pytest.approx(20 * hours),
        "cost/budget_share": pytest.approx(hours * 10 / 40),  # the amount has used 20% only
    }


def test_the_budget_warns_once_over_all_attempts_and_again_after_an_increase(run: RunDirectory) -> None:
    warnings: list[str] = []
    budget = "cost.budget.gpu_hours=20"
    attempt(config_of(budget), run, hours=1.5, warn=warnings.append)  # 15 of 20: 75%
    assert warnings == []
    attempt(config_of(budget), run, hours=0.2, warn=warnings.append)  # 17 of 20: 85%
    (warning,) = warnings
    assert "cost.budget.gpu_hours 16.00 of 20.00" in warning
    assert "ends with a checkpoint" in warning
    attempt(config_of(budget), run, hours=0.1, warn=warnings.append)  # 18 of 20
    assert len(warnings) == 1
    larger = config_of("cost.budget.gpu_hours=30", "cost.budget.warn_at=0.9")
    attempt(larger, run, hours=0.8, warn=warnings.append)  # 26 of 30: 87%
    assert len(warnings) == 1
    attempt(larger, run, hours=0.2, warn=warnings.append)  # 28 of 30: 93%
    assert "cost.budget.gpu_hours 27.00 of 30.00" in warnings[1]


def test_the_generation_of_traces_ends_when_the_budget_is_used_up(run: RunDirectory) -> None:
    async def generate() -> float:
        config = config_of("cost.budget.cpu_hours=24")
        meter = CostMeter(config, run, on_warning=print)
        async with meter.running():
            with meter.reserving(demand_by_pool(config)):
                with pytest.raises(StopRequestedError, match=r"cost\.budget\.cpu_hours 24\.00 of 24\.00; increase it"):
                    await meter.wait_exhausted()
                return asyncio.get_running_loop().time()

    assert run_in_virtual_time(generate()) == pytest.approx(2 * 3600, abs=1)


def test_a_used_up_budget_refuses_a_resume_until_it_is_larger(run: RunDirectory) -> None:
    config = config_of("cost.budget.gpu_hours=10")
    require_budget(config, run)
    attempt(config, run, hours=1.1)
    with pytest.raises(ConfigError, match=r"used up: cost\.budget\.gpu_hours 11\.00 of 10\.00.*larger limit"):
        require_budget(config, run)
    require_budget(config_of("cost.budget.gpu_hours=12"), run)
    require_budget(config_of(), run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["cost.pool_prices_per_gpu_hour={roll_out: 1}"], "no pool roll_out; expected one of learner, rollout, teach"),
        (["cost.budget.amount=5", "cost.price_per_cpu_hour=0"], "everything that the run reserves is free"),
    ],
)
def test_limits_and_prices_that_can_have_no_effect_are_refused(
    run: RunDirectory, settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        require_budget(config_of(*settings), run)


def test_a_limit_of_gpu_hours_is_refused_without_gpus(run: RunDirectory) -> None:
    config = load_run_config(Path("configs/smoke_cpu.yaml"), ["cost.budget.gpu_hours=1"])
    with pytest.raises(ConfigError, match=r"set cost\.budget\.cpu_hours instead"):
        require_budget(config, run)


def test_a_run_without_a_record_has_no_cost_and_a_damaged_record_is_reported(run: RunDirectory) -> None:
    assert read_cost(run) is None
    run.cost.write_text('{"total": {"gpu_hours": "many"}}')
    with pytest.raises(CorruptFileError, match=r"cost\.json is damaged.*delete it"):
        read_cost(run)
