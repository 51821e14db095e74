"""Dashboards and alerts name metrics that exist, and Prometheus accepts them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ray
import yaml

from pipelines.monitoring.deployment.files import files
from pipelines.monitoring.deployment.queries import RAY_METRICS
from rlad.monitoring.table import METRICS

FOLDER = Path(__file__).parents[4] / "deploy" / "monitoring"
# Parts that Prometheus derives from a histogram.
HISTOGRAM = ("_bucket", "_sum", "_count")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus"
)


def promtool(*arguments: str, cwd: Path = FOLDER) -> str:
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def named_metrics(content: str) -> set[str]:
    """Return all names of metrics of rlad and Ray in a file. Names of alerts, dashboards and groups have no `_`."""
    found = set(re.findall(r"\b(?:ray|rlad)_[a-z0-9_]+", content)) - {"rlad_"}
    return {next((name.removesuffix(part) for part in HISTOGRAM if name.endswith(part)), name) for name in found}


def test_committed_files_are_generated() -> None:
    assert {name: (FOLDER / name).read_text() for name in files()} == files(), "run `make manifests`"


@pytest.mark.parametrize("name", [name for name in files() if name.startswith("grafana") or name == "alerts.yml"])
def test_every_metric_of_a_dashboard_or_alert_exists(name: str) -> None:
    known = {metric.exported_name for metric in METRICS} | RAY_METRICS
    found = named_metrics((FOLDER / name).read_text())
    assert found
    assert found - known == set()


def test_metrics_of_ray_are_those_of_the_installed_version() -> None:
    folder = Path(ray.__file__).parent
    sources = [*(folder / "serve" / "_private").glob("*.py"), *(folder / "dashboard/modules/reporter").glob("*.py")]
    code = "\n".join(path.read_text() for path in sources)
    assert {name for name in RAY_METRICS if f'"{name.removeprefix("ray_")}"' not in code} == set()


def test_dashboards_are_complete() -> None:
    for path in sorted((FOLDER / "grafana").iterdir()):
        dashboard = json.loads(path.read_text())
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
        assert len(places) == len(set(places)) > 3
        assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


@needs_promtool
def test_prometheus_accepts_rules_and_configuration() -> None:
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", "prometheus.yml")


@needs_promtool
def test_prometheus_can_parse_every_query_of_a_dashboard(tmp_path: Path) -> None:
    expressions = [
        target["expr"].replace("$run", ".*")
        for path in (FOLDER / "grafana").iterdir()
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]
    rules = [{"record": f"query_{number}", "expr": expression} for number, expression in enumerate(expressions)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    assert f"{len(expressions)} rules found" in promtool("check", "rules", "queries.yml", cwd=tmp_path)


# For each alert: series in which it fires, and series in which all is well, as values one minute apart.
RUN = '{run="r"}'
CASES = [
    (
        "RladNoStep",
        {
            f"ray_rlad_run_last_step_timestamp_seconds{RUN}": "0x120",
            f"ray_rlad_run_trained_steps{RUN}": "3x120",
            f"ray_rlad_run_total_steps{RUN}": "9x120",
        },
        {
            f"ray_rlad_run_last_step_timestamp_seconds{RUN}": "0x120",
            f"ray_rlad_run_trained_steps{RUN}": "9x120",
            f"ray_rlad_run_total_steps{RUN}": "9x120",
        },
    ),
    (
        "RladAccuracyFell",
        {f"ray_rlad_evaluation_accuracy{RUN}": "0.8x60 0.65x60"},
        {f"ray_rlad_evaluation_accuracy{RUN}": "0.8x60 0.75x60"},
    ),
    (
        "RladBudgetNearlyUsed",
        {f"ray_rlad_cost_budget_share{RUN}": "0.5x60 0.8x60"},
        {f"ray_rlad_cost_budget_share{RUN}": "0.5x60 0.79x60"},
    ),
    (
        "RladTruncationRising",
        {f"ray_rlad_rollout_truncated_fraction{RUN}": "0.05x100 0.3x20"},
        {f"ray_rlad_rollout_truncated_fraction{RUN}": "0.3x120"},
    ),
    (
        "RladTruncationCollapse",
        {f"ray_rlad_rollout_truncated_fraction{RUN}": "0.6x120"},
        {f"ray_rlad_rollout_truncated_fraction{RUN}": "0.5x120"},
    ),
    (
        "RladRepetition",
        {f"ray_rlad_rollout_repetitive_fraction{RUN}": "0.2x120"},
        {f"ray_rlad_rollout_repetitive_fraction{RUN}": "0.1x120"},
    ),
    (
        "RladTeacherDisagrees",
        {f"ray_rlad_objective_teacher_disagreement_fraction{RUN}": "0.7x120"},
        {f"ray_rlad_objective_teacher_disagreement_fraction{RUN}": "0.6x120"},
    ),
    (
        "RladWorkersMissing",
        {
            'ray_rlad_pool_workers{run="r", pool="rollout", state="ready"}': "1x120",
            'ray_rlad_pool_workers{run="r", pool="rollout", state="target"}': "2x120",
        },
        {
            'ray_rlad_pool_workers{run="r", pool="rollout", state="ready"}': "2x120",
            'ray_rlad_pool_workers{run="r", pool="rollout", state="target"}': "2x120",
        },
    ),
    (
        "RladWorkerDown",
        {'ray_rlad_worker_up{run="r", worker="rollout-0"}': "0x120"},
        {'ray_rlad_worker_up{run="r", worker="rollout-0"}': "-1x120"},
    ),
    (
        "RladWorkerLost",
        {'ray_rlad_pool_lost_processes{run="r", pool="rollout"}': "0x117 1x3"},
        {'ray_rlad_pool_lost_processes{run="r", pool="rollout"}': "1x120"},
    ),
    (
        "RladTeacherSaturated",
        {'rlad_teacher_requests_total{instance="t", route="/v1/score", status="429"}': "0+120x120"},
        {'rlad_teacher_requests_total{instance="t", route="/v1/score", status="200"}': "0+120x120"},
    ),
    (
        "RladScheduleMissed",
        {'rlad_schedule_ticks{schedule="s", event="missed"}': "4x60 5x60"},
        {'rlad_schedule_ticks{schedule="s", event="missed"}': "4x120"},
    ),
    (
        "RladPromotionRefused",
        {'rlad_schedule_ticks{schedule="s", event="kept"}': "1x60 2x60"},
        {'rlad_schedule_ticks{schedule="s", event="promoted"}': "1x60 2x60"},
    ),
    (
        "RladLogprobGap",
        {f"ray_rlad_learner_logprob_gap_mean{RUN}": "0.2x120"},
        {f"ray_rlad_learner_logprob_gap_mean{RUN}": "0.001x120"},
    ),
]


@needs_promtool
def test_faults_fire_their_alert_and_nothing_else_does(tmp_path: Path) -> None:
    """Prometheus evaluates the rules on two hours of values, and looks at the end."""
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    tests = []
    for alert, faulty, healthy in CASES:
        for series, fires in ((faulty, True), (healthy, False)):
            expression = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
            tests.append(
                {
                    "interval": "1m",
                    "name": f"{alert} {'fires' if fires else 'is silent'}",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": expression,
                            "eval_time": "2h",
                            "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                        }
                    ],
                }
            )
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", "tests.yml", cwd=tmp_path)
