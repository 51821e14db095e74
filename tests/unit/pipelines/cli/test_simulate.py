"""`rlad simulate`: speeds from the forecast or from options, the real scheduler, and several splits of the GPUs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen3Config
from typer.testing import CliRunner

from pipelines.cli.forecast_options import pool_costs
from pipelines.cli.main import app
from pipelines.cli.simulate import bounded_steps, require_speeds, sizes_to_simulate
from pipelines.cli.tables.splits import print_splits
from pipelines.forecast.simulated import SimulatedSplit, simulate_split, speeds_of
from pipelines.forecast.step import sizes_of, step_time
from pipelines.forecast.tables import forecast
from pipelines.simulation.workload import Lengths, Speeds
from rlad.config import RunConfig, load_run_config
from rlad.errors import PlanError

from ..console_text import WIDTH, cells_of, rendered, terminal, text_of

CONFIGS = Path(__file__).parents[4] / "configs"
SMOKE = str(CONFIGS / "smoke_cpu.yaml")
# Speeds for the smoke configuration, which has 8 groups of 4 responses per step and two updates.
SPEEDS = [
    "--token-ms",
    "10",
    "--learner-token-ms",
    "0.5",
    "--teacher-token-ms",
    "0.2",
    "--verdict-ms",
    "1",
    "--update-ms",
    "5",
    "--weights-ms",
    "20",
]
EQUAL_LENGTHS = ["--median-tokens", "48", "--tail", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return overrides that replace the configured models with two small ones."""
    settings = []
    for role, hidden in (("student", 1024), ("teacher", 2048)):
        directory = tmp_path_factory.mktemp(role)
        shape = {"vocab_size": 1000, "num_hidden_layers": 28, "num_key_value_heads": 8, "head_dim": 128}
        Qwen3Config(hidden_size=hidden, intermediate_size=3 * hidden, **shape).save_pretrained(directory)
        settings.append(f"{role}.path={directory}")
    return settings


def run_config(models: list[str], **training: int) -> RunConfig:
    return load_run_config(
        CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*models, *(f"training.{name}={value}" for name, value in training.items())]
    )


def simulated_json(*arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, ["simulate", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def test_step_time_follows_from_measured_speeds() -> None:
    """All responses have 48 tokens, so the duration of a strictly on-policy step can be computed by hand."""
    tokens, at_once = 8 * 4 * 48, [*EQUAL_LENGTHS, "--steps", "3", "--slots", "32", "--verdict-ms", "0"]
    # With an instant teacher, all groups are complete after 48 tokens, and both updates train after that.
    [split] = simulated_json(SMOKE, *SPEEDS, *at_once, "--teacher-token-ms", "0")
    step_s = 48 * 0.010 + tokens * 0.5e-3 + 2 * 0.005 + 0.020
    assert split["step_s"] == pytest.approx(step_s, rel=1e-3)
    assert split["tokens_per_s"] == pytest.approx(tokens / step_s, rel=0.01)
    assert split["busy"]["learner"] == pytest.approx((tokens * 0.5e-3 + 2 * 0.005) / step_s, abs=0.02)  # type: ignore[index]
    # With an instant learner, the single teacher replica scores the groups in order, and one or both updates are left.
    [split] = simulated_json(SMOKE, *SPEEDS, *at_once, "--learner-token-ms", "0")
    assert split["step_s"] == pytest.approx(48 * 0.010 + tokens * 0.2e-3 + 1.5 * 0.005 + 0.020, abs=0.003)


def test_lost_workers_are_replaced_and_cost_time() -> None:
    arguments = [SMOKE, *SPEEDS, *EQUAL_LENGTHS, "training.steps=10", "rollout.workers=3", "--restart-s", "1"]
    [undisturbed] = simulated_json(*arguments)
    [disturbed] = simulated_json(*arguments, "--failures-per-day", "40000")
    assert disturbed["lost"].keys() == {"rollout", "teacher", "learner"}  # type: ignore[attr-defined]
    assert disturbed["lost_workers"] == sum(disturbed["lost"].values()) > 0  # type: ignore[attr-defined]
    assert disturbed["makespan_s"] > undisturbed["makespan_s"]  # type: ignore[operator]


def test_missing_speed_options_are_named() -> None:
    config = load_run_config(SMOKE, [])
    with pytest.raises(PlanError, match="set --device .* or the measured --learner-token-ms, --teacher-token-ms"):
        require_speeds(config, {"token_s": 0.01}, gpus=None)
    with pytest.raises(PlanError, match="--gpus requires --device"):
        require_speeds(config, {}, gpus=64)
    offline = load_run_config(CONFIGS / "offline_kk_cpu.yaml", [])
    with pytest.raises(PlanError, match="needs a run that samples from the student"):
        require_speeds(offline, {}, gpus=None)


def test_steps_are_bounded_by_groups_but_reach_the_maximum_lead(models: list[str]) -> None:
    assert bounded_steps(run_config(models, prompts_per_step=32), 20) == 20
    assert bounded_steps(run_config(models, prompts_per_step=150), 20) == 10
    assert bounded_steps(run_config(models, prompts_per_step=3000, max_staleness=4), 20) == 7
    assert bounded_steps(run_config(models, steps=2), 20) == 2


def test_simulated_step_agrees_with_forecast_speeds(models: list[str]) -> None:
    for staleness in (0, 2):
        config = run_config(models, max_staleness=staleness, prompts_per_step=16)
        costs, lengths = pool_costs(config, "h100", median_tokens=200, tail=6, prompt_tokens=128, assume=None)
        sizes = sizes_of(config)
        speeds, predicted = speeds_of(costs, sizes), step_time(costs, sizes, staleness=staleness)
        assert speeds.token_s == predicted.decoding.token_s
        assert speeds.teacher_token_s * costs.work.response_tokens / 2 == pytest.approx(predicted.busy["teacher"])
        assert speeds.learner_token_s * costs.work.response_tokens + speeds.update_s == pytest.approx(
            predicted.busy["learner"]
        )
        found = simulate_split(
            config,
            sizes,
            lengths=lengths,
            speeds=speeds,
            teachers=2,
            failures_per_day=0,
            restart_s=0,
            steps=4 * (staleness + 1),
        )
        assert found.step_s == pytest.approx(predicted.seconds, rel=0.25)
        assert found.run.makespan_over_bound >= 1


def test_long_polls_time_out_in_virtual_time(models: list[str]) -> None:
    """Groups that arrive over more virtual time than any deadline do not stop the simulation."""
    config = run_config(models, prompts_per_step=8, steps=1)
    lengths = Lengths(median=100, p99_over_median=10, longest=1000, group_size=8)
    speeds = Speeds(
        token_s=1.0, slots=8, teacher_token_s=0.0, verdict_s=0.0, learner_token_s=1e-3, update_s=0.0, weights_s=0.0
    )
    run: SimulatedSplit = simulate_split(
        config,
        replace(sizes_of(config), rollout=1),
        lengths=lengths,
        speeds=speeds,
        teachers=2,
        failures_per_day=0,
        restart_s=0,
        steps=1,
    )
    assert run.run.makespan_s > 600


def test_gpus_are_divided_in_several_ways(models: list[str]) -> None:
    config = run_config(models, max_staleness=1)
    costs, _ = pool_costs(config, "h100", median_tokens=200, tail=6, prompt_tokens=128, assume=None)
    assert sizes_to_simulate(config, costs, None, 4) == [sizes_of(config)]
    found = sizes_to_simulate(config, costs, 256, 4)
    assert len(found) == len({sizes.rollout for sizes in found}) == 4
    assert all(sum(sizes.devices(config).values()) == 256 for sizes in found)
    with pytest.raises(PlanError, match="2 NVIDIA H100 SXM are too few"):
        sizes_to_simulate(config, costs, 2, 4)


def test_output_names_the_fastest_split_its_efficiency_and_the_assumptions(models: list[str]) -> None:
    arguments = [
        "training.max_staleness=1",
        "training.prompts_per_step=4",
        "--device",
        "h100",
        "--gpus",
        "16",
        "--splits",
        "2",
        "--steps",
        "3",
    ]
    arguments = [str(CONFIGS / "qwen3_0.6b_kk_2k.yaml"), *models, "cost.price_per_gpu_hour=2", *arguments]
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["simulate", *arguments])
    assert result.exit_code == 0, result.output
    fastest = min(simulated_json(*arguments), key=lambda split: float(split["step_s"]))  # type: ignore[arg-type]
    assert f"fastest: rollout.workers={fastest['rollout_workers']} " in result.stdout
    assert f"efficiency: {fastest['efficiency']:.2f}, the time of the pool with the most work" in result.stdout
    assert "median of 512 tokens, 99th percentile 10 times the median, cut at 2048 tokens" in result.stdout
    assert {"cost", "per step"} <= cells_of(result.stdout)


def test_tables_fit_80_columns(models: list[str]) -> None:
    config = run_config(models, max_staleness=1, prompts_per_step=2)
    costs, lengths = pool_costs(config, "h100", median_tokens=50, tail=2, prompt_tokens=128, assume=None)
    sizes = [replace(size, rollout=12_345) for size in sizes_to_simulate(config, costs, 64, 8)]
    run = simulate_split(
        config,
        replace(sizes[0], rollout=2),
        lengths=lengths,
        speeds=speeds_of(costs, sizes[0]),
        teachers=1,
        failures_per_day=0,
        restart_s=0,
        steps=3,
    )
    busy = {f"teacher-with_a_long_name_{number}": 1.0 for number in range(5)}
    split = replace(
        run,
        sizes=replace(sizes[0], rollout=12_345, scorers=dict.fromkeys(busy, 1_024)),
        devices=16_384,
        run=replace(run.run, busy=busy),
    )
    console = terminal()
    print_splits([split] * 12, console, price_per_hour=12_345.67)
    text = text_of(console)
    assert max(map(len, text.splitlines())) <= WIDTH
    cells = cells_of(text)
    cost = f"{split.step_s / 3600 * 16_384 * 12_345.67:,.2f}"
    assert {"split", *map(str, range(1, 13)), "16384", "12345", "1024", "100%", cost} <= cells
    assert {f"{split.step_s:.1f}", f"{split.tokens_per_s:,.0f}", split.bound_by, "bounded by"} <= cells
    assert {f"{pool} replicas" for pool in busy} | {f"{pool} busy" for pool in busy} <= cells


def test_forecast_table_fits_80_columns(models: list[str]) -> None:
    settings = f"{{path: {models[1].split('=')[1]}, gpus_per_replica: 1}}"
    teachers = [f"teachers.with_a_long_name_{number}={settings}" for number in range(4)]
    config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [models[0], "teacher=null", *teachers])
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"workers": 12_345})})
    costs, lengths = pool_costs(config, "a100", median_tokens=200, tail=6, prompt_tokens=128, assume=None)
    found = forecast(costs, lengths)
    text = rendered(found.table())
    assert max(map(len, text.splitlines())) <= WIDTH
    cells = cells_of(text)
    assert {
        "pool",
        "workers",
        "GPUs",
        "on-policy (s)",
        "1 ahead (s)",
        "2 ahead (s)",
        "step",
        "bounded by",
        "12345",
    } <= cells
    assert {f"teacher-with_a_long_name_{number}" for number in range(4)} <= cells
    assert {f"{step.seconds:.1f}" for step in (found.on_policy, found.ahead[1], found.ahead[2])} <= cells
    assert set(found.ahead[1].bound_by.split(" ")) <= cells


def test_plan_reports_that_cpu_pools_have_no_forecast(tmp_path: Path) -> None:
    result = CliRunner(env={"COLUMNS": "200", "RLAD_CACHE": str(tmp_path)}).invoke(
        app, ["plan", SMOKE, "--device", "h100"]
    )
    assert result.exit_code == 0, result.output
    assert (
        "no forecast: a forecast needs all pools on GPUs; these pools run on CPU: rollout, teacher, learner"
        in result.stdout
    )
