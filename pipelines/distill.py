"""The distillation run: the driver of everything that `rlad run` does, from top to bottom.

    prompts -> rollout pool -> (teachers, verifiers) -> broker -> learner -> weights -> rollout pool

With an `offline` section the groups come from verified traces of the teacher:

    prompts -> teacher -> verifiers -> traces -> broker -> learner -> weights -> rollout pool (for evaluation only)

This process holds references and small numbers. Token data passes from pool to pool through the object store.
"""

from __future__ import annotations

import asyncio
import signal

from ray.actor import ActorHandle
from rich.console import Console
from rich.markup import escape

from actors.health.monitor import HeartbeatMonitor
from pipelines.cluster.connection import connected, labelled_resources
from pipelines.cluster.node_models import starts_local_cluster
from pipelines.cluster.owner import owned
from pipelines.cluster.resources import demand_by_pool, require_labelled_room, require_room
from pipelines.environment.requirements import require_packages
from pipelines.monitoring.cost_meter import CostMeter, require_budget
from pipelines.monitoring.trackers.opening import require_trackers
from pipelines.reports.run_report import write_report
from pipelines.resolution.resolved_run import ResolvedRun, resolve_run
from pipelines.resolution.run_inputs import input_fingerprints
from pipelines.run.cost import read_cost
from pipelines.run.directory import RunDirectory
from pipelines.run.downloads import fetch_here
from pipelines.run.heartbeat import beating
from pipelines.run.model_card import write_model_card
from pipelines.run.progress import RunProgress, accuracy_table
from pipelines.run.result import RunResult, finished_result
from pipelines.run.status import recording_status
from pipelines.traces.groups import TraceGroups, trace_training_set
from pipelines.traces.preparation import prepare_traces, require_reusable_traces
from pipelines.training.broker_client import BrokerClient
from pipelines.training.deadlines import run_unless_failed, together
from pipelines.training.evaluation import ScheduledEvaluation
from pipelines.training.group_pipeline import GroupPipeline, GroupServices, GroupSettings
from pipelines.training.pools import fetch_for_pools, heartbeat_monitor, require_shared_teachers
from pipelines.training.shutdown import EarlyEnd, finish_run, stop_after_failure
from pipelines.training.startup import Services, open_services, start_broker, start_learner, watch_broker
from pipelines.training.step_loop import run_step_loop
from pipelines.training.step_pipeline import GroupSource, PromptScheduler, TrainingSet
from rlad.config import RunConfig
from rlad.data.training_traces import TrainingTraces
from rlad.errors import RunDirectoryError


def distill(config: RunConfig, directory: RunDirectory, *, resume: bool, console: Console) -> RunResult:
    """Run a distillation, or continue it with `resume`. Blocks until the student is exported.

    All checks come before the run directory is created, so a run that fails them leaves nothing behind.

    Raises:
        StopRequestedError: A request stopped the run.
        RladError: The run failed. The run directory holds the last checkpoint, and `resume` continues from it.
    """
    directory.require_usable(config, resume=resume)
    result = finished_result(config, directory)
    if result is not None:
        console.print(f"[green]✓[/] this run is finished: {config.training.steps} steps", highlight=False)
        with directory.hold(config, resume=resume):
            _write_documents(result)
    else:
        require_budget(config, directory)
        result = _train_on_cluster(resolve_run(config, directory), console, resume=resume)
    columns = {"before": result.before, "after": result.after}
    console.print(accuracy_table("Accuracy of the student", columns, group_by=config.evaluation.group_label))
    if (cost := read_cost(directory)) is not None:
        console.print(f"cost:    {cost.total}", soft_wrap=True, highlight=False)
    console.print(f"student: {directory.export}\nreport:  {directory.report}", soft_wrap=True, highlight=False)
    return result


def _train_on_cluster(run: ResolvedRun, console: Console, *, resume: bool) -> RunResult:
    """Connect to the cluster, check that the run fits, and train."""
    config, directory = run.config, run.directory
    require_reusable_traces(run)
    require_packages(config)
    require_trackers(config.tracking)
    is_local = starts_local_cluster(config.cluster)
    if is_local:
        fetch_here(run.models.by_setting().values(), console)
    with RunProgress(console, total_steps=config.training.steps) as progress:
        with progress.phase("fingerprints of data and models"):
            inputs = input_fingerprints(run)
            directory.require_same_inputs(inputs)
        with connected(config.cluster) as resources:
            require_room(config, resources, "the cluster")
            if config.cluster.pool_labels:
                require_labelled_room(config, labelled_resources())
            asyncio.run(require_shared_teachers(run))
            if not is_local:
                fetch_for_pools(config, run.models, progress)
            applications = [f"{run.run_id}-{pool}" for pool in config.scoring_pools]
            with (
                directory.hold(config, resume=resume),
                recording_status(directory),
                beating(directory, config.failures),
                owned(directory, run.run_id, applications=applications),
            ):
                directory.record_models(run.models.by_setting())
                directory.record_inputs(inputs)
                asyncio.run(_train(run, progress, console))
                result = finished_result(config, directory)
                if result is None:
                    raise RunDirectoryError(
                        f"{directory.path} lacks the evaluations or the export that the run has just written: "
                        "was it changed by another process?"
                    )
                _write_documents(result)
    return result


def _write_documents(result: RunResult) -> None:
    write_report(result.run)
    write_model_card(result.run, before=result.before, after=result.after)


async def _train(run: ResolvedRun, progress: RunProgress, console: Console) -> None:
    """Train the student: broker and learner first, then the pools while the learner loads, then the steps."""
    run.directory.record_prompts(run.prompts_record)
    cost = CostMeter(run.config, run.directory, on_warning=progress.warn)
    async with cost.running():
        traces = await prepare_traces(run, progress, console, cost) if run.config.offline is not None else None
        training_set = _training_set(run) if traces is None else trace_training_set(traces, run.prompts)
        monitor = heartbeat_monitor(run.config, run.run_id)
        async with monitor.running():
            with cost.reserving(demand_by_pool(run.config)):
                await _train_on(run, training_set, traces, monitor, progress, console, cost)


async def _train_on(
    run: ResolvedRun,
    training_set: TrainingSet,
    traces: TrainingTraces | None,
    monitor: HeartbeatMonitor,
    progress: RunProgress,
    console: Console,
    cost: CostMeter,
) -> None:
    """Train on a training set. Any failure of a part ends the others."""
    broker = start_broker(run, group_size=training_set.group_size)
    client = BrokerClient(handle=broker)  # the only one: it holds what a restarted broker needs
    learner = start_learner(run, broker)
    early_end = EarlyEnd(client, grace_period_s=run.config.checkpoints.grace_period_s)
    try:
        await run_unless_failed(
            _train_with(run, broker, client, monitor, training_set, traces, progress, early_end, cost),
            watched=together(
                learner.wait(),  # unlimited wait: the steps of the run have deadlines
                early_end.on_sigterm(),
                watch_broker(monitor, broker, deadline_s=run.config.cluster.start_timeout_s),
            ),
        )
    except BaseException as error:
        await stop_after_failure(client, error)
        if early_end.is_terminated:  # ends like every command on SIGTERM, with the learner's own words
            console.print(f"[yellow]stopped:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise SystemExit(signal.SIGTERM) from error
        raise
    finally:
        await learner.close()


async def _train_with(
    run: ResolvedRun,
    broker: ActorHandle,
    client: BrokerClient,
    monitor: HeartbeatMonitor,
    training_set: TrainingSet,
    traces: TrainingTraces | None,
    progress: RunProgress,
    early_end: EarlyEnd,
    cost: CostMeter,
) -> None:
    """Open the services, run all steps, and finish the run."""
    async with open_services(run, broker, client, progress, monitor, cost) as services:
        scheduler = PromptScheduler(training_set, seed=run.config.seed, used=services.used_uids)
        source = _group_source(run, services, scheduler, traces)
        evaluation = ScheduledEvaluation(run, services.pools, services.telemetry, progress)
        await run_step_loop(
            run,
            services,
            training_set,
            scheduler=scheduler,
            source=source,
            evaluation=evaluation,
            progress=progress,
            early_end=early_end,
        )
        await finish_run(run, services.broker, evaluation)


def _training_set(run: ResolvedRun) -> TrainingSet:
    """Return the training set of a run that samples the student's own responses: one entry a prompt."""
    return TrainingSet(
        fingerprint=run.dataset_fingerprint,
        prompt_ids=[record.id for record in run.prompts.records],
        group_size=run.config.rollout.group_size,
        mixture=run.prompts.mixture,
    )


def _group_source(
    run: ResolvedRun, services: Services, scheduler: PromptScheduler, traces: TrainingTraces | None
) -> GroupSource:
    """Return the source of the run's groups: traces if there are any, otherwise the student's own responses."""
    if traces is not None:
        return TraceGroups(traces, run.prompts, broker=services.broker)
    pools = services.pools
    return GroupPipeline(
        GroupSettings.of(run.config),
        run.prompts,
        run.teachers_by_prompt,
        scheduler=scheduler,
        broker=services.broker,
        services=GroupServices(
            sampler=pools.rollout,
            verifier=pools.verifiers,
            teachers=pools.teachers,
            reference=pools.reference,
            samples=services.samples,
        ),
        teacher_prompts=run.teacher_prompts,
    )
