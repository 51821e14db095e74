"""Records a trained step: metrics, samples, timeline, progress, and the autoscaler's decision."""

from __future__ import annotations

import logging

from pipelines.monitoring.cost_meter import CostMeter
from pipelines.monitoring.run_metrics import RunMetrics
from pipelines.monitoring.trackers.opening import Trackers
from pipelines.run.logprob_gap import LogprobGapLimit
from pipelines.run.progress import RunProgress
from pipelines.run.telemetry import Telemetry
from pipelines.training.autoscaler import RolloutAutoscaler
from pipelines.training.control import RunControl
from pipelines.training.pools import Pools
from pipelines.training.samples import SampleLogger
from pipelines.training.step_pipeline import GroupSource, TrainedStep
from pipelines.training.utilization import UtilizationMeter
from rlad.config import RunConfig

logger = logging.getLogger(__name__)


class StepRecorder:
    """Records trained steps of a run, and resizes the rollout pool as the autoscaler decides."""

    def __init__(
        self,
        config: RunConfig,
        pools: Pools,
        *,
        telemetry: Telemetry,
        samples: SampleLogger | None,
        trackers: Trackers,
        metrics: RunMetrics,
        control: RunControl,
        progress: RunProgress,
        source: GroupSource,
        cost: CostMeter,
    ) -> None:
        """
        Args:
            config: Configuration of the run, with the settings of the autoscaler and the limit of the gap.
            pools: The pools, whose utilization is measured.
            telemetry: Records metrics and timeline.
            samples: Writes the samples of the step; None if the run logs none.
            trackers: Count the figures that they lost.
            metrics: Gets the numbers of lost figures and samples.
            control: Gets the run's present state.
            progress: Shows the step.
            source: Computes the metrics of a step's groups.
            cost: Measures the cost of the run.
        """
        self._pools, self._telemetry, self._control, self._progress = pools, telemetry, control, progress
        self._source, self._samples, self._cost = source, samples, cost
        self._trackers, self._metrics = trackers, metrics
        self._utilization = UtilizationMeter(pools)
        self._autoscaler = RolloutAutoscaler(config.rollout)
        self._gap = LogprobGapLimit.of(config)

    async def record(self, trained: TrainedStep, *, accuracy: float | None) -> None:
        """Record a step.

        Args:
            trained: The step.
            accuracy: Accuracy of the last evaluation, for the progress line.

        Raises:
            EngineError: Rollout engine and learner disagree.
        """
        metrics = self._source.metrics(trained) | await self._utilization.idle_shares(trained.report.metrics)
        metrics |= self._cost.record_step()
        self._telemetry.record_step(trained.number + 1, metrics)
        if self._samples is not None:
            self._samples.write_step(trained.number, [group.summary.uid for group in trained.groups])
        left_out = 0 if self._samples is None else self._samples.left_out
        self._metrics.record_losses(self._trackers.counts, left_out_samples=left_out)
        self._add_spans(trained)
        self._control.record_step(trained.number + 1, metrics)
        sizes = self._control.pool_sizes()
        size = self._autoscaler.target_size(metrics, sizes, self._pools.rollout.state())
        if size is not None:
            logger.info("autoscale=rollout workers=%d step=%d", size, trained.number)
            self._pools.rollout.resize(size)
            sizes = self._control.pool_sizes()
        self._progress.step(trained.number + 1, metrics, accuracy, sizes)
        self._gap.check(trained.number, metrics)

    def _add_spans(self, trained: TrainedStep) -> None:
        """Add the step's stages to the timeline."""
        telemetry, times = self._telemetry, trained.times
        for group in trained.groups:
            uid, passed = group.summary.uid, group.times
            telemetry.add_span("rollout", uid, passed.issued_at, passed.sampled_at, worker=group.worker)
            telemetry.add_span("verifier", uid, passed.sampled_at, passed.verified_at)
            if group.teachers:
                telemetry.add_span("teacher", uid, passed.sampled_at, passed.scored_at)
        last_scored_at = max(times.started_at, *(group.times.scored_at for group in trained.groups))
        telemetry.add_span("learner (exposed)", f"step {trained.number}", last_scored_at, times.trained_at)
        telemetry.add_span("weights", f"version {trained.number + 1}", times.trained_at, times.weights_at)
