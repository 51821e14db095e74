"""Alert rules of Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.monitoring.deployment.queries import name


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert rule.

    Attributes:
        title: Name of the alert.
        expression: Query that returns a series for each thing that is wrong.
        lasts: How long that must be so, in Prometheus' notation.
        severity: `critical` needs a person now, `warning` soon, `info` is for the record.
        summary: One sentence, with labels of the series in braces.
        remedy: What to look at first.
    """

    title: str
    expression: str
    lasts: str
    severity: Literal["critical", "warning", "info"]
    summary: str
    remedy: str

    def as_rule(self) -> dict[str, Any]:
        """Return the rule in Prometheus' form."""
        return {
            "alert": self.title,
            "expr": self.expression,
            "for": self.lasts,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.remedy},
        }


def _largest(metric_name: str, *labels: str, selector: str = "") -> str:
    """Return a query without the labels that Ray adds. A continued run has series of both drivers for some time."""
    return f"max by ({', '.join(labels)}) ({name(metric_name)}{selector})"


_LAST_STEP = _largest("rlad_run_last_step_timestamp_seconds", "run")
_UNFINISHED = f"{_largest('rlad_run_trained_steps', 'run')} < {_largest('rlad_run_total_steps', 'run')}"
_READY = _largest("rlad_pool_workers", "run", "pool", selector='{state="ready"}')
_WANTED = _largest("rlad_pool_workers", "run", "pool", selector='{state="target"}')

RUN_ALERTS = (
    Alert(
        title="RladNoStep",
        expression=f"time() - {_LAST_STEP} > 3600 and {_UNFINISHED}",
        lasts="1m",
        severity="critical",
        summary="Run {{ $labels.run }} has trained no step for an hour.",
        remedy="`rlad status RUN` shows pools and processes. Set the limit above the duration of your steps.",
    ),
    Alert(
        title="RladAccuracyFell",
        expression=(
            f"{name('rlad_evaluation_accuracy')} < max_over_time({name('rlad_evaluation_accuracy')}[1d]) - 0.1"
        ),
        lasts="1m",
        severity="warning",
        summary="Accuracy of run {{ $labels.run }} is 0.1 or more below its best of the last day.",
        remedy="Look at reward, KL and samples (`rlad samples RUN --worst`).",
    ),
    Alert(
        title="RladBudgetNearlyUsed",
        expression=f"{name('rlad_cost_budget_share')} >= 0.8",
        lasts="1m",
        severity="warning",
        summary="Run {{ $labels.run }} has used {{ $value | humanizePercentage }} of its budget.",
        remedy="At 100% it ends with a checkpoint. Continue it with --resume and a larger `cost.budget`.",
    ),
    Alert(
        title="RladPolicyMovesFast",
        expression=f"{name('rlad_objective_log_ratio_behaviour_abs_mean')} > 0.5",
        lasts="10m",
        severity="warning",
        summary="The policy of run {{ $labels.run }} is far from the one that sampled its responses.",
        remedy="Lower the learning rate, `training.max_staleness` or `training.passes`.",
    ),
    Alert(
        title="RladReferenceKlHigh",
        expression=f"{name('rlad_objective_reference_kl')} > 1",
        lasts="10m",
        severity="warning",
        summary="KL of run {{ $labels.run }} to its reference policy exceeds 1 nat per token.",
        remedy="Raise `objective.reference_kl`, or lower the learning rate.",
    ),
    Alert(
        title="RladEntropyOutOfBounds",
        expression=f"{name('rlad_objective_entropy')} < 0.02 or {name('rlad_objective_entropy')} > 5",
        lasts="10m",
        severity="warning",
        summary="Entropy of run {{ $labels.run }} is {{ $value }} nats per token.",
        remedy="A collapsed policy no longer explores; a diverged one samples noise. Look at `rlad samples RUN`.",
    ),
    Alert(
        title="RladTruncationRising",
        expression=(
            f"{name('rlad_rollout_truncated_fraction')} > 0.1 and {name('rlad_rollout_truncated_fraction')} > "
            f"2 * avg_over_time({name('rlad_rollout_truncated_fraction')}[6h] offset 1h)"
        ),
        lasts="10m",
        severity="warning",
        summary="Twice as many responses of run {{ $labels.run }} as before reach the token budget.",
        remedy="Responses that repeat themselves or grow: `rlad samples RUN --worst`.",
    ),
    Alert(
        title="RladTruncationCollapse",
        expression=f"{name('rlad_rollout_truncated_fraction')} > 0.5",
        lasts="10m",
        severity="critical",
        summary="Half of the responses of run {{ $labels.run }} or more reach the token budget and earn no reward.",
        remedy="Raise `rollout.max_response_tokens`, or stop the run and lower the learning rate: `rlad samples RUN`.",
    ),
    Alert(
        title="RladRepetition",
        expression=f"{name('rlad_rollout_repetitive_fraction')} > 0.1",
        lasts="10m",
        severity="warning",
        summary="{{ $value | humanizePercentage }} of the responses of run {{ $labels.run }} end in a loop.",
        remedy="Stop the run and continue from an earlier checkpoint with a lower learning rate: `rlad samples RUN`.",
    ),
    Alert(
        title="RladTeacherDisagrees",
        expression=f"{name('rlad_objective_teacher_disagreement_fraction')} > 0.6",
        lasts="30m",
        severity="warning",
        summary="The teacher of run {{ $labels.run }} pulls most tokens against their advantage.",
        remedy="`rlad teacher check CONFIG` shows the kinds of problems; see docs/how-to/check-a-teacher.md.",
    ),
    Alert(
        title="RladLogprobGap",
        expression=f"{name('rlad_learner_logprob_gap_mean')} > 0.1",
        lasts="10m",
        severity="critical",
        summary="Rollout engine and learner of run {{ $labels.run }} disagree by {{ $value }} nats per token.",
        remedy="Wrong weights, precision or tokenizer in the engine: `rlad doctor`, `learner.max_logprob_gap`.",
    ),
    Alert(
        title="RladUpdatesNotFinite",
        expression=f"{name('rlad_learner_nonfinite_updates')} > 0",
        lasts="10m",
        severity="critical",
        summary="Updates of run {{ $labels.run }} have NaN or infinite gradients.",
        remedy="Lower the learning rate, and look at the scores of the teacher.",
    ),
    Alert(
        title="RladFiguresLost",
        expression=f"{name('rlad_tracker_lost_calls')} > 0",
        lasts="10m",
        severity="info",
        summary="Tracker {{ $labels.tracker }} of run {{ $labels.run }} lost figures ({{ $labels.reason }}).",
        remedy="`RUN/tracking/NAME.log` has the output of its library.",
    ),
)
POOL_ALERTS = (
    Alert(
        title="RladPoolIdle",
        expression=f'{name("rlad_pool_idle_share")}{{pool=~"rollout|learner"}} > 0.9',
        lasts="30m",
        severity="warning",
        summary="Pool {{ $labels.pool }} of run {{ $labels.run }} is idle 90% of the time.",
        remedy="`rlad status RUN` names what bounds the step; `rlad scale` moves workers.",
    ),
    Alert(
        title="RladGpuIdle",
        expression=f"{name('ray_node_gpus_utilization')} < 5",
        lasts="30m",
        severity="warning",
        summary="A GPU of node {{ $labels.ip }} is idle.",
        remedy="Remove the node, or scale a pool up.",
    ),
    Alert(
        title="RladWorkersMissing",
        expression=f"{_READY} < {_WANTED}",
        lasts="10m",
        severity="warning",
        summary="Pool {{ $labels.pool }} of run {{ $labels.run }} has fewer workers than it should.",
        remedy="Nodes were lost, or the cluster has no room.",
    ),
    Alert(
        title="RladWorkerDown",
        expression=f"{name('rlad_worker_up')} == 0",
        lasts="5m",
        severity="warning",
        summary="Process {{ $labels.worker }} of run {{ $labels.run }} is stopped, or its node does not answer.",
        remedy="`rlad status RUN` shows the process. The run replaces it after `failures.missed_heartbeats`.",
    ),
    Alert(
        title="RladWorkerLost",
        expression=f"delta({name('rlad_pool_lost_processes')}[10m]) > 0",
        lasts="0m",
        severity="info",
        summary="A process of run {{ $labels.run }} was lost and replaced: {{ $labels.pool }}.",
        remedy="Look at the node's memory, and at its log of preemptions.",
    ),
)
TEACHER_ALERTS = (
    Alert(
        title="RladTeacherSaturated",
        expression=f'sum by (instance) (rate({name("rlad_teacher_requests_total")}{{status="429"}}[5m])) > 1',
        lasts="10m",
        severity="warning",
        summary="The teacher behind {{ $labels.instance }} refuses groups beyond the quota of its clients.",
        remedy="Raise `max_replicas` or `max_groups_per_client` of the teacher service.",
    ),
    Alert(
        title="RladTeacherFails",
        expression=f'sum by (instance) (rate({name("rlad_teacher_requests_total")}{{status=~"5.."}}[5m])) > 0.1',
        lasts="10m",
        severity="critical",
        summary="The teacher behind {{ $labels.instance }} fails.",
        remedy="`rlad teacher status` shows its replicas.",
    ),
)
SCHEDULE_ALERTS = (
    Alert(
        title="RladScheduleMissed",
        expression=f'delta({name("rlad_schedule_ticks")}{{event="missed"}}[1d]) > 0',
        lasts="0m",
        severity="warning",
        summary="Schedule {{ $labels.schedule }} missed a tick.",
        remedy="No daemon ran at that time: `rlad schedule history NAME`.",
    ),
    Alert(
        title="RladScheduleFailed",
        expression=f'delta({name("rlad_schedule_ticks")}{{event="failed"}}[1d]) > 0',
        lasts="0m",
        severity="critical",
        summary="A run of schedule {{ $labels.schedule }} failed.",
        remedy="`rlad schedule history NAME` has the reason.",
    ),
    Alert(
        title="RladPromotionRefused",
        expression=f'delta({name("rlad_schedule_ticks")}{{event="kept"}}[1d]) > 0',
        lasts="0m",
        severity="info",
        summary="The student of schedule {{ $labels.schedule }} was not better than production.",
        remedy="`rlad schedule history NAME` compares the accuracies.",
    ),
    Alert(
        title="RladScheduleStoreDamaged",
        expression=f"{name('rlad_schedule_broken_rows')} > 0",
        lasts="1m",
        severity="critical",
        summary="{{ $value }} rows of the schedule store are invalid, and their schedules do not tick.",
        remedy="`rlad schedule list` names each row and how to repair it.",
    ),
)


def rules() -> dict[str, Any]:
    """Return the rule file of Prometheus."""
    groups = {
        "rlad-runs": RUN_ALERTS,
        "rlad-pools": POOL_ALERTS,
        "rlad-teachers": TEACHER_ALERTS,
        "rlad-schedules": SCHEDULE_ALERTS,
    }
    return {
        "groups": [
            {"name": title, "interval": "30s", "rules": [alert.as_rule() for alert in alerts]}
            for title, alerts in groups.items()
        ]
    }
