"""The step loop of a run: evaluate, train and record, step after step."""

from __future__ import annotations

from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.run.progress import RunProgress
from pipelines.training.evaluation import ScheduledEvaluation
from pipelines.training.shutdown import EarlyEnd
from pipelines.training.startup import Services
from pipelines.training.step_pipeline import GroupSource, PromptScheduler, StepPipeline, TrainingSet
from pipelines.training.step_recorder import StepRecorder


async def run_step_loop(
    run: ResolvedRun,
    services: Services,
    training_set: TrainingSet,
    *,
    scheduler: PromptScheduler,
    source: GroupSource,
    evaluation: ScheduledEvaluation,
    progress: RunProgress,
    early_end: EarlyEnd,
) -> None:
    """Train from the learner's version to the last step, and wait until the learner has exported the student.

    While a step is trained, groups of up to `training.max_staleness` later steps are sampled.

    Args:
        run: The resolved run.
        services: The running services.
        training_set: Entries to train on.
        scheduler: Gives out the groups.
        source: Produces the groups.
        evaluation: Evaluates the policy when that is due.
        progress: Shows the steps.
        early_end: Ends the run with a checkpoint when a request asks it to stop, or its budget is used up.

    Raises:
        DeadlineError: The learner did not export the student in time.
        StopRequestedError: The run is to end early, and the learner wrote no checkpoint in time. If it writes one, its
            own end cancels this call.
        RladError: The first error of any part; everything in progress is cancelled.
    """
    config, pools = run.config, services.pools
    pipeline = StepPipeline(
        config.training,
        training_set,
        scheduler=scheduler,
        broker=services.broker,
        source=source,
        update_weights=pools.rollout.update_weights,
        step_timeout_s=config.failures.step_timeout_s,
    )
    recorder = StepRecorder(
        config,
        pools,
        telemetry=services.telemetry,
        samples=services.samples,
        trackers=services.trackers,
        metrics=services.metrics,
        control=services.control,
        progress=progress,
        source=source,
        cost=services.cost,
    )
    async with pipeline.open(services.started):
        for step in range(services.started.version, config.training.steps):
            if services.control.is_stopping:
                await early_end.checkpoint_and_stop("stopped on request")
            if (reason := services.cost.exhausted) is not None:
                await early_end.checkpoint_and_stop(reason)
            await evaluation.evaluate_if_due(step)
            trained = await pipeline.train_step(step)
            await recorder.record(trained, accuracy=evaluation.accuracy)
        # Inside the pipeline: ranks that restart before their last checkpoint claim batch shards once more.
        with progress.phase("exporting the student"):
            await services.broker.wait_exported(deadline_s=config.failures.step_timeout_s)
