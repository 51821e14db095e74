"""The table of all metrics: the only place where their names are written.

Code, dashboards, alerts and the reference page follow it, and tests compare them.
"""

from __future__ import annotations

import functools

from rlad.monitoring.metric import Metric

# Figures of a step, and their descriptions. The name of the metric follows from that of the figure.
_FIGURES = {
    "reward/mean": "Mean verifier reward of the judged responses, dropped groups included.",
    "reward/equal_groups_fraction": "Share of groups whose rewards are all equal, which have no advantage.",
    "verifier/correct": "Responses of the step that the verifier judged correct.",
    "verifier/wrong": "Responses of the step that the verifier judged wrong.",
    "verifier/unparseable": "Responses of the step without a readable answer, truncated ones included.",
    "verifier/timeout": "Responses of the step whose verification took too long.",
    "verifier/error": "Responses of the step whose verification failed.",
    "verifier/left_out_fraction": "Share of responses without a verdict.",
    "rollout/response_tokens": "Response tokens of the step.",
    "rollout/response_tokens_mean": "Mean length of a response, tokens.",
    "rollout/response_tokens_max": "Longest response, tokens.",
    "rollout/truncated_fraction": "Share of responses that reached the token budget.",
    "rollout/repetitive_fraction": "Share of responses that end in a loop: the same tokens at least four times.",
    "rollout/tokens_per_s": "Sampled tokens per second of sampling.",
    "rollout/staleness_mean": "Mean age of a token when it is trained on, policy versions.",
    "rollout/staleness_max": "Highest age of a token when it is trained on, policy versions.",
    "rollout/dropped_groups": "Groups with equal rewards that were replaced.",
    "rollout/abandoned_groups": "Groups that failed on every attempt and were replaced.",
    "rollout/retried_groups": "Groups that were issued more than once.",
    "traces/response_tokens": "Tokens of the traces of the step.",
    "traces/response_tokens_mean": "Mean length of a trace, tokens.",
    "traces/response_tokens_max": "Longest trace, tokens.",
    "traces/tokens_per_s": "Trained trace tokens per second.",
    "time/step_s": "Duration of the step, seconds.",
    "time/generate_s": "Part of the step until the last group was sampled, seconds.",
    "time/score_s": "Part of the step from then until the last group was scored and judged, seconds.",
    "time/teacher_s": "Part of that after the last verdict, seconds.",
    "time/learn_s": "Part of the step in which only the learner worked, seconds.",
    "time/weights_s": "Part of the step for the weight update, seconds.",
    "learner/lr": "Learning rate.",
    "learner/entropy_coefficient": "Coefficient of the entropy bonus.",
    "learner/updates": "Optimizer updates of the step.",
    "learner/nonfinite_updates": "Updates that were left out for a NaN or infinite gradient.",
    "learner/micro_batches": "Micro-batches of the step, all ranks.",
    "learner/tokens": "Trained tokens of the step.",
    "learner/missing_teacher_tokens": "Tokens without a finite score of the teacher.",
    "learner/missing_reference_tokens": "Tokens without a finite score of the reference policy.",
    "learner/missing_behaviour_tokens": "Tokens without a finite log-probability of the sampler.",
    "learner/loss": "Loss, mean over the updates.",
    "learner/gradient_norm": "Gradient norm before clipping, mean over the updates.",
    "learner/logprob_gap_mean": "Mean difference of a token's log-probability between sampler and learner, nats.",
    "learner/logprob_gap_max": "Largest difference of a token's log-probability between sampler and learner, nats.",
    "learner/peak_memory_gib": "Peak memory of the rank with the highest, GiB.",
    "learner/wait_s": "Time in which the learner waited for batch shards, seconds.",
    "learner/train_s": "Time in which the learner trained, seconds.",
    "learner/send_s": "Time in which the learner sent weights to workers, seconds.",
    "learner/checkpoint_s": "Time in which the learner wrote a checkpoint, seconds.",
    "learner/publish_s": "Time in which the learner published weights, seconds.",
    "objective/clip_fraction": "Share of tokens without gradient because their ratio is clipped.",
    "objective/clip_fraction_positive": "The same of tokens with a positive advantage.",
    "objective/clip_fraction_negative": "The same of tokens with a negative advantage.",
    "objective/ratio_mean": "Mean ratio that the objective clips.",
    "objective/log_ratio_behaviour_mean": "Mean log-ratio of the policy and the sampling policy, nats.",
    "objective/log_ratio_behaviour_abs_mean": "Mean absolute value of the same, nats.",
    "objective/log_ratio_teacher_mean": "Mean log-ratio of the policy and the teacher, nats: estimates their KL.",
    "objective/log_ratio_teacher_abs_mean": "Mean absolute value of the same, nats.",
    "objective/teacher_disagreement_fraction": "Share of tokens with an advantage that imitation would move against "
    "its sign.",
    "objective/teacher_clamp_fraction": "Share of tokens whose log-ratio to the teacher is clamped.",
    "objective/anchor_veto_fraction_positive": "Share of vetoed tokens among those with a positive advantage.",
    "objective/anchor_veto_fraction_negative": "Share of vetoed tokens among those with a negative advantage.",
    "objective/anchor_clip_fraction": "Share of tokens that only the anchor clips.",
    "objective/behaviour_missing_tokens": "Tokens that the objective left out for lack of the sampler's score.",
    "objective/teacher_missing_tokens": "Tokens that the objective left out for lack of the teacher's score.",
    "objective/reference_missing_tokens": "Tokens that the objective left out for lack of the reference's score.",
    "objective/teacher_kl": "Mean divergence of the policy and the teacher, nats.",
    "objective/imitated_fraction": "Share of tokens with a distillation term.",
    "objective/reference_kl": "Mean KL of the policy and the reference policy, nats.",
    "objective/entropy": "Mean entropy of the policy, nats per token, if `objective.entropy_bonus` is on.",
    "objective/mismatch_mean": "Mean correction of the difference between sampler and learner.",
    "objective/mismatch_cut_fraction": "Share of tokens whose correction is cut.",
    "objective/negative_log_likelihood": "Mean negative log-likelihood of the traces, nats per token.",
    "cost/gpu_hours": "GPU-hours that the run's pools have reserved since its start, over all attempts.",
    "cost/cpu_hours": "CPU-hours that the run's pools have reserved since its start, over all attempts.",
    "cost/amount": "Amount of these hours at the prices of `cost`, in `cost.currency`.",
    "cost/budget_share": "Used share of the limit of `cost.budget` that is used most, 1 at the limit.",
    "evaluation/accuracy": "Accuracy of the last evaluation (mean@k), between 0 and 1.",
}
_BY_PASS = (
    "objective/clip_fraction",
    "objective/ratio_mean",
    "objective/log_ratio_behaviour_abs_mean",
    "learner/gradient_norm",
)

_LABELLED_FIGURES = (
    Metric(
        name="rlad_task_reward_mean",
        kind="gauge",
        labels=("run", "task"),
        description="Mean verifier reward of the judged responses of a task, if the run has several.",
        figure="reward/mean_{task}",
    ),
    Metric(
        name="rlad_evaluation_group_accuracy",
        kind="gauge",
        labels=("run", "group"),
        description="Accuracy of the last evaluation in one group of `evaluation.group_by`.",
        figure="evaluation/accuracy_{group}",
    ),
    Metric(
        name="rlad_teacher_tokens",
        kind="gauge",
        labels=("run", "teacher"),
        description="Tokens of the step that a teacher scored.",
        figure="teacher/{teacher}_tokens",
    ),
    Metric(
        name="rlad_pool_idle_share",
        kind="gauge",
        labels=("run", "pool"),
        description="Share of the step in which the workers of a pool had no work, between 0 and 1.",
        figure="idle/{pool}",
    ),
    *(
        Metric(
            name=f"rlad_{name.replace('/', '_')}_by_pass",
            kind="gauge",
            labels=("run", "update_pass"),
            description=f"`{name}` of one of several passes over the batch.",
            figure=f"{name}_pass_{{update_pass}}",
        )
        for name in _BY_PASS
    ),
)

_RUN = (
    Metric(name="rlad_run_trained_steps", kind="gauge", labels=("run",), description="Trained steps."),
    Metric(name="rlad_run_total_steps", kind="gauge", labels=("run",), description="Steps of the whole run."),
    Metric(
        name="rlad_run_last_step_timestamp_seconds",
        kind="gauge",
        labels=("run",),
        description="Time of the last trained step or of the start, seconds since the epoch.",
    ),
    Metric(
        name="rlad_pool_workers",
        kind="gauge",
        labels=("run", "pool", "state"),
        description="Workers of a pool by state: `target`, `ready`, `starting`, `draining`.",
    ),
    Metric(
        name="rlad_worker_up",
        kind="gauge",
        labels=("run", "worker"),
        description="1 if the process was alive at the last heartbeat, 0 if it was stopped or its node did not "
        "answer, -1 after it was lost or removed.",
    ),
    Metric(
        name="rlad_pool_lost_processes",
        kind="gauge",
        labels=("run", "pool"),
        description="Processes of a pool or service, such as `rollout` or `broker`, that were lost since the run "
        "started.",
    ),
    Metric(
        name="rlad_tracker_lost_calls",
        kind="gauge",
        labels=("run", "tracker", "reason"),
        description="Calls that a tracker did not get: `dropped` (queue full) or `failed`.",
    ),
    Metric(
        name="rlad_samples_left_out_groups",
        kind="gauge",
        labels=("run",),
        description="Groups chosen for the sample log that were not logged.",
    ),
)

_GATEWAY = (
    Metric(
        name="rlad_teacher_requests_total",
        kind="counter",
        labels=("route", "status"),
        description="Requests that the gateway answered, by route and HTTP status.",
        source="gateway",
    ),
    Metric(
        name="rlad_teacher_request_seconds",
        kind="histogram",
        labels=("route",),
        description="Duration of a request, seconds.",
        source="gateway",
    ),
    Metric(
        name="rlad_teacher_requests_in_progress",
        kind="gauge",
        labels=(),
        description="Requests that the gateway is answering.",
        source="gateway",
    ),
    Metric(
        name="rlad_teacher_scored_tokens_total",
        kind="counter",
        labels=(),
        description="Tokens that were scored through the gateway.",
        source="gateway",
    ),
)

_SCHEDULE = (
    Metric(
        name="rlad_schedule_ticks",
        kind="gauge",
        labels=("schedule", "event"),
        description="Ticks in the store by their event: `promoted`, `kept`, `stopped`, `failed`, `refused`, `missed`, "
        "`skipped`, or `running`.",
        source="schedule",
    ),
    Metric(
        name="rlad_schedule_paused",
        kind="gauge",
        labels=("schedule",),
        description="1 if the schedule is paused.",
        source="schedule",
    ),
    Metric(
        name="rlad_schedule_next_tick_timestamp_seconds",
        kind="gauge",
        labels=("schedule",),
        description="Next time of the cron expression, seconds since the epoch. None for a paused schedule.",
        source="schedule",
    ),
    Metric(
        name="rlad_schedule_last_end_timestamp_seconds",
        kind="gauge",
        labels=("schedule",),
        description="Time at which the last tick ended, seconds since the epoch.",
        source="schedule",
    ),
    Metric(
        name="rlad_schedule_last_accuracy",
        kind="gauge",
        labels=("schedule",),
        description="Accuracy of the student of the last finished tick, between 0 and 1.",
        source="schedule",
    ),
    Metric(
        name="rlad_schedule_queue_slots",
        kind="gauge",
        labels=("queue",),
        description="Maximum number of runs at once of a queue with a limit.",
        source="schedule",
    ),
    Metric(
        name="rlad_schedule_queue_ticks",
        kind="gauge",
        labels=("queue", "state"),
        description="Ticks of a queue with a limit, by state: `running` or `waiting`.",
        source="schedule",
    ),
    Metric(
        name="rlad_schedule_broken_rows",
        kind="gauge",
        labels=(),
        description="Rows of the store that are invalid.",
        source="schedule",
    ),
)

METRICS: tuple[Metric, ...] = (
    *(
        Metric(name=f"rlad_{name.replace('/', '_')}", kind="gauge", labels=("run",), description=text, figure=name)
        for name, text in _FIGURES.items()
    ),
    *_LABELLED_FIGURES,
    *_RUN,
    *_GATEWAY,
    *_SCHEDULE,
)
"""All metrics. Exact names of figures come before patterns, so the first match is the right one."""

_BY_NAME = {metric.name: metric for metric in METRICS}


def metric(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        KeyError: The table has no such metric.
    """
    return _BY_NAME[name]


@functools.lru_cache(maxsize=4096)
def metric_of_figure(figure: str) -> tuple[Metric, tuple[tuple[str, str], ...]] | None:
    """Return the metric of a figure and the labels that its name holds; None for an unknown figure."""
    for each in METRICS:
        labels = each.labels_of(figure)
        if labels is not None:
            return each, tuple(labels.items())
    return None
