"""Grafana dashboards: runs, pools, teacher services and schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.monitoring.deployment.queries import name

_PANELS_PER_ROW, _WIDTH, _HEIGHT = 3, 8, 8
_SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel with curves.

    Attributes:
        title: Title.
        queries: Query of each curve by its legend, in Grafana's notation for labels.
        unit: Unit of the axis, in Grafana's notation.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"


def _of_run(figure: str, **labels: str) -> str:
    selectors = ", ".join(['run=~"$run"', *(f'{label}="{value}"' for label, value in labels.items())])
    return f"{name(figure)}{{{selectors}}}"


def _curves(title: str, *figures: str, unit: str = "short") -> Panel:
    """Return a panel with one curve for each figure and run."""
    if len(figures) == 1:
        return Panel(title=title, queries={"{{run}}": _of_run(figures[0])}, unit=unit)
    queries = {f"{figure.removeprefix('rlad_')} {{{{run}}}}": _of_run(figure) for figure in figures}
    return Panel(title=title, queries=queries, unit=unit)


_RUN = [
    _curves("Reward", "rlad_reward_mean"),
    Panel(
        title="Reward by task",
        queries={"{{task}} {{run}}": _of_run("rlad_task_reward_mean")},
    ),
    _curves("Accuracy", "rlad_evaluation_accuracy", unit="percentunit"),
    _curves("Trained steps", "rlad_run_trained_steps"),
    _curves("Loss", "rlad_learner_loss"),
    _curves("Gradient norm", "rlad_learner_gradient_norm"),
    _curves("KL to the teacher (mean log-ratio)", "rlad_objective_log_ratio_teacher_mean"),
    _curves("Distance from the sampling policy", "rlad_objective_log_ratio_behaviour_abs_mean"),
    _curves("Entropy", "rlad_objective_entropy"),
    _curves("Clipped tokens", "rlad_objective_clip_fraction", unit="percentunit"),
    _curves("Log-probability gap", "rlad_learner_logprob_gap_mean", "rlad_learner_logprob_gap_max"),
    _curves("Truncated responses", "rlad_rollout_truncated_fraction", unit="percentunit"),
    _curves("Response length, tokens", "rlad_rollout_response_tokens_mean", "rlad_rollout_response_tokens_max"),
    _curves("Groups with equal rewards", "rlad_reward_equal_groups_fraction", unit="percentunit"),
    _curves("Left out of verification", "rlad_verifier_left_out_fraction", unit="percentunit"),
    _curves("Reserved hours", "rlad_cost_gpu_hours", "rlad_cost_cpu_hours"),
    _curves("Amount at the prices of the run", "rlad_cost_amount"),
    _curves("Used budget", "rlad_cost_budget_share", unit="percentunit"),
]
_POOLS = [
    _curves("Step", "rlad_time_step_s", unit="s"),
    _curves(
        "Parts of the step",
        "rlad_time_generate_s",
        "rlad_time_score_s",
        "rlad_time_learn_s",
        "rlad_time_weights_s",
        unit="s",
    ),
    _curves("Sampled tokens per second", "rlad_rollout_tokens_per_s"),
    Panel(
        title="Idle share",
        queries={"{{pool}} {{run}}": _of_run("rlad_pool_idle_share")},
        unit="percentunit",
    ),
    Panel(
        title="Ready workers",
        queries={"{{pool}} {{run}}": _of_run("rlad_pool_workers", state="ready")},
    ),
    Panel(
        title="Missing workers",
        queries={
            "{{pool}} {{run}}": f"max by (run, pool) ({_of_run('rlad_pool_workers', state='target')}) - "
            f"max by (run, pool) ({_of_run('rlad_pool_workers', state='ready')})"
        },
    ),
    Panel(title="Processes", queries={"{{worker}} {{run}}": _of_run("rlad_worker_up")}),
    Panel(title="Lost processes", queries={"{{pool}} {{run}}": _of_run("rlad_pool_lost_processes")}),
    _curves("Staleness, versions", "rlad_rollout_staleness_mean", "rlad_rollout_staleness_max"),
    Panel(title="GPU", queries={"{{ip}} {{GpuIndex}}": name("ray_node_gpus_utilization")}, unit="percent"),
    Panel(title="CPU", queries={"{{ip}}": name("ray_node_cpu_utilization")}, unit="percent"),
    Panel(
        title="Memory",
        queries={"{{ip}}": f"{name('ray_node_mem_used')} / {name('ray_node_mem_total')}"},
        unit="percentunit",
    ),
]
_TEACHERS = [
    Panel(
        title="Requests per second",
        queries={
            "{{route}} {{status}}": f"sum by (route, status) (rate({name('rlad_teacher_requests_total')}[5m]))",
        },
    ),
    Panel(
        title="Duration, 95%",
        queries={
            "{{route}}": "histogram_quantile(0.95, sum by (route, le) "
            f"(rate({name('rlad_teacher_request_seconds')}_bucket[5m])))"
        },
        unit="s",
    ),
    Panel(title="Requests in progress", queries={"{{instance}}": name("rlad_teacher_requests_in_progress")}),
    Panel(
        title="Scored tokens per second",
        queries={"{{instance}}": f"rate({name('rlad_teacher_scored_tokens_total')}[5m])"},
    ),
    Panel(
        title="Refused for the quota, per second",
        queries={
            "{{instance}}": f'sum by (instance) (rate({name("rlad_teacher_requests_total")}{{status="429"}}[5m]))'
        },
    ),
    Panel(title="Tokens of the last step", queries={"{{teacher}} {{run}}": name("rlad_teacher_tokens")}),
    Panel(
        title="Groups in replicas",
        queries={"{{application}} {{replica}}": name("ray_serve_replica_processing_queries")},
    ),
    Panel(
        title="Groups in progress",
        # Each process that sends requests counts its own.
        queries={"{{application}}": f"sum by (application) ({name('ray_serve_num_ongoing_requests_at_replicas')})"},
    ),
    Panel(
        title="Use of replicas",
        queries={"{{application}} {{replica}}": name("ray_serve_replica_utilization_percent")},
        unit="percent",
    ),
]
_SCHEDULES = [
    Panel(
        title="Time to the next tick",
        queries={"{{schedule}}": f"{name('rlad_schedule_next_tick_timestamp_seconds')} - time()"},
        unit="s",
    ),
    Panel(
        title="Time since the last end",
        queries={"{{schedule}}": f"time() - {name('rlad_schedule_last_end_timestamp_seconds')}"},
        unit="s",
    ),
    Panel(title="Running", queries={"{{schedule}}": f'{name("rlad_schedule_ticks")}{{event="running"}}'}),
    Panel(title="Ticks", queries={"{{schedule}} {{event}}": name("rlad_schedule_ticks")}),
    Panel(
        title="Accuracy of the last student",
        queries={"{{schedule}}": name("rlad_schedule_last_accuracy")},
        unit="percentunit",
    ),
    Panel(title="Paused", queries={"{{schedule}}": name("rlad_schedule_paused")}),
    Panel(
        title="Queues",
        queries={
            "{{queue}} {{state}}": name("rlad_schedule_queue_ticks"),
            "{{queue}} slots": name("rlad_schedule_queue_slots"),
        },
    ),
    Panel(title="Invalid rows", queries={"rows": name("rlad_schedule_broken_rows")}),
]


def dashboards() -> dict[str, dict[str, Any]]:
    """Return all dashboards by file name, in Grafana's form."""
    run = {
        "name": "run",
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values({name('rlad_run_trained_steps')}, run)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "run.json": _dashboard("rlad: runs", "rlad-runs", _RUN, [run]),
        "pools.json": _dashboard("rlad: pools", "rlad-pools", _POOLS, [run]),
        "teachers.json": _dashboard("rlad: teachers", "rlad-teachers", _TEACHERS, []),
        "schedules.json": _dashboard("rlad: schedules", "rlad-schedules", _SCHEDULES, []),
    }


def _dashboard(title: str, uid: str, panels: list[Panel], variables: list[dict[str, Any]]) -> dict[str, Any]:
    source = {"name": "source", "type": "datasource", "query": "prometheus"}
    return {
        "title": title,
        "uid": uid,
        "schemaVersion": 39,
        "tags": ["rlad"],
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [source, *variables]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _PANELS_PER_ROW)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
            for index, (legend, expression) in enumerate(panel.queries.items())
        ],
    }
