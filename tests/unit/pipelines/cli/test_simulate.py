"""`rlad simulate`: speeds by the forecast's formulas or by hand, the real scheduler under them, and several divisions of the GPUs."""

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
from pipelines.forecast.simulated import SimulatedSplit, simulate_split, speeds_of
from pipelines.forecast.step import sizes_of, step_time
from pipelines.simulation.workload import Lengths, Speeds
from rlad.config import RunConfig, load_run_config
from rlad.errors import PlanError

CONFIGS = Path(__file__).parents[4] / "configs"
SMOKE = str(CONFIGS / "smoke_cpu.yaml")
# Of the smoke configuration: 8 groups of 4 responses a step, in two updates.
BY_HAND = [
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
ALIKE = ["--median-tokens", "48", "--tail", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings for two small shapes in place of the configured models."""
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


def test_a_cpu_run_is_simulated_by_the_speeds_that_are_given() -> None:
    """All responses are 48 tokens long, so every second of a strictly on-policy step is known."""
    tokens, at_once = 8 * 4 * 48, [*ALIKE, "--steps", "3", "--slots", "32", "--verdict-ms", "0"]
    # A teacher that takes no time: after 48 tokens all groups are there, and everything is trained on after that, in two updates.
    [split] = simulated_json(SMOKE, *BY_HAND, *at_once, "--teacher-token-ms", "0")
    step_s = 48 * 0.010 + tokens * 0.5e-3 + 2 * 0.005 + 0.020
    assert split["step_s"] == pytest.approx(step_s, rel=1e-3)
    assert split["tokens_per_s"] == pytest.approx(tokens / step_s, rel=0.01)
    assert split["busy"]["learner"] == pytest.approx((tokens * 0.5e-3 + 2 * 0.005) / step_s, abs=0.02)  # type: ignore[index]
    # A learner that takes no time but for its updates: the one teacher scores group after group, and one update is left or both.
    [split] = simulated_json(SMOKE, *BY_HAND, *at_once, "--learner-token-ms", "0")
    assert split["step_s"] == pytest.approx(48 * 0.010 + tokens * 0.2e-3 + 1.5 * 0.005 + 0.020, abs=0.003)


def test_lost_workers_are_replaced_and_cost_time() -> None:
    arguments = [SMOKE, *BY_HAND, *ALIKE, "training.steps=10", "rollout.workers=3", "--restart-s", "1"]
    [whole] = simulated_json(*arguments)
    [hurt] = simulated_json(*arguments, "--failures-per-day", "40000")
    assert hurt["lost_workers"] > 0  # type: ignore[operator]
    assert hurt["makespan_s"] > whole["makespan_s"]  # type: ignore[operator]


def test_without_speeds_the_missing_options_are_named() -> None:
    config = load_run_config(SMOKE, [])
    with pytest.raises(
        PlanError, match="--device for runs on GPUs, or as measured --learner-token-ms, --teacher-token-ms"
    ):
        require_speeds(config, {"token_s": 0.01}, gpus=None)
    with pytest.raises(PlanError, match="say which they are with --device"):
        require_speeds(config, {}, gpus=64)
    offline = load_run_config(CONFIGS / "offline_kk_cpu.yaml", [])
    with pytest.raises(PlanError, match="only runs that sample from the student"):
        require_speeds(offline, {}, gpus=None)


def test_steps_are_bounded_by_their_groups_but_the_samplers_get_as_far_ahead_as_they_may(models: list[str]) -> None:
    assert bounded_steps(run_config(models, prompts_per_step=32), 20) == 20
    assert bounded_steps(run_config(models, prompts_per_step=150), 20) == 10
    assert bounded_steps(run_config(models, prompts_per_step=3000, max_staleness=4), 20) == 7
    assert bounded_steps(run_config(models, steps=2), 20) == 2


def test_speeds_come_from_the_forecast_and_the_simulated_step_agrees_with_it(models: list[str]) -> None:
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


def test_steps_with_many_virtual_minutes_between_groups_are_simulated(models: list[str]) -> None:
    """The learner's long polls end by the simulation's clock: groups that come one after the other for longer than any deadline do not stop it."""
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
    with pytest.raises(PlanError, match="2 NVIDIA H100 SXM cannot be divided"):
        sizes_to_simulate(config, costs, 2, 4)


def test_the_table_names_the_fastest_split_and_what_was_assumed(models: list[str]) -> None:
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
    result = CliRunner(env={"COLUMNS": "240"}).invoke(
        app, ["simulate", str(CONFIGS / "qwen3_0.6b_kk_2k.yaml"), *models, *arguments, "--price-per-gpu-hour", "2"]
    )
    assert result.exit_code == 0, result.output
    assert "fastest: rollout.workers=" in result.stdout
    assert "median of 512 tokens, 99th percentile 10 times the median, cut at 2048 tokens" in result.stdout
    assert "cost a step" in result.stdout


def test_plan_says_that_it_predicts_nothing_on_cpu(tmp_path: Path) -> None:
    result = CliRunner(env={"COLUMNS": "200", "RLAD_CACHE": str(tmp_path)}).invoke(
        app, ["plan", SMOKE, "--device", "h100"]
    )
    assert result.exit_code == 0, result.output
    assert (
        "no prediction: nothing is predicted for pools on CPU, of which there are no figures: rollout, teacher, learner"
        in result.stdout
    )
