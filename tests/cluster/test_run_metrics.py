"""Metrics of a run arrive at the metrics endpoint of Ray under the names of the table."""

from __future__ import annotations

import time

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families

from actors.controller import RunState
from actors.health.monitor import ActorHealth
from actors.pool.pool import PoolState
from pipelines.monitoring.run_metrics import RunMetrics
from pipelines.monitoring.trackers.delivery import DeliveryCounts

PATIENCE_S = 120.0
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped() -> Values:
    """Return the values of the metrics of rlad by name and their own labels."""
    port = ray.nodes()[0]["MetricsExportPort"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    own = {"run", "pool", "state", "worker", "task", "tracker", "reason", "update_pass"}
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k in own and v))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ray_rlad_") and sample.labels.get("run") == "r"
    }


def state(*workers: str) -> RunState:
    pool = PoolState(target=2, ready=1, starting=1, draining=0)
    # A new process has the count of its pool: one was lost for each number before its own.
    health = tuple(
        ActorHealth(name=name, role="rollout", state="alive", seen_s=0.0, restarts=int(name[-1])) for name in workers
    )
    return RunState(
        phase="running", step=3, total_steps=9, pools={"rollout": pool}, metrics={}, updated_at=1.0, actors=health
    )


def test_figures_and_state_are_scraped_with_their_labels() -> None:
    metrics = RunMetrics("r", total_steps=9, trained_steps=2)
    metrics.record_state(state("rollout-0"))
    metrics.record_state(state("rollout-1"))
    counts = DeliveryCounts(delivered=5, dropped=2, failed=1, unsent=0)
    metrics.record_losses({"wandb": counts}, left_out_samples=4)
    figures = {"reward/mean": 0.5, "reward/mean_math": 0.25, "objective/of a user": 7.0, "learner/loss": float("nan")}
    metrics.log(3, figures)
    run = ("run", "r")
    expected: Values = {
        ("ray_rlad_reward_mean", (run,)): 0.5,
        ("ray_rlad_task_reward_mean", (run, ("task", "math"))): 0.25,
        ("ray_rlad_objective_of_a_user", (run,)): 7.0,
        ("ray_rlad_run_trained_steps", (run,)): 3.0,
        ("ray_rlad_run_total_steps", (run,)): 9.0,
        ("ray_rlad_pool_workers", (("pool", "rollout"), run, ("state", "ready"))): 1.0,
        ("ray_rlad_pool_workers", (("pool", "rollout"), run, ("state", "target"))): 2.0,
        ("ray_rlad_worker_up", (run, ("worker", "rollout-0"))): -1.0,
        ("ray_rlad_worker_up", (run, ("worker", "rollout-1"))): 1.0,
        ("ray_rlad_pool_lost_processes", (("pool", "rollout"), run)): 1.0,
        ("ray_rlad_tracker_lost_calls", (("reason", "dropped"), run, ("tracker", "wandb"))): 2.0,
        ("ray_rlad_samples_left_out_groups", (run,)): 4.0,
    }
    deadline, found = time.monotonic() + PATIENCE_S, scraped()
    while not expected.items() <= found.items():
        assert time.monotonic() < deadline, expected.items() - found.items()
        time.sleep(0.5)
        found = scraped()
    assert ("ray_rlad_learner_loss", (run,)) not in found
    assert abs(found["ray_rlad_run_last_step_timestamp_seconds", (run,)] - time.time()) < PATIENCE_S
