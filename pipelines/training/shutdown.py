"""The end of a run: after the last step, and after a failure."""

from __future__ import annotations

import logging

from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.run.progress import RunProgress
from pipelines.training.broker_client import BrokerClient
from pipelines.training.evaluation import ScheduledEvaluation
from rlad.errors import RladError

logger = logging.getLogger(__name__)


async def finish_run(
    run: ResolvedRun, broker: BrokerClient, evaluation: ScheduledEvaluation, progress: RunProgress
) -> None:
    """Finish a run whose last step is trained: wait for the export, evaluate, and let the learner end.

    Raises:
        DeadlineError: The learner did not export the student in time.
    """
    config = run.config
    with progress.phase("exporting the student"):
        await broker.wait_exported(deadline_s=config.learner.step_timeout_s)
    await evaluation.evaluate_if_due(config.training.steps)
    await broker.dismiss()


async def stop_after_failure(broker: BrokerClient, error: BaseException) -> None:
    """Tell learner and waiting callers that the run ends early.

    Never raises: an unreachable broker must not replace the error that ended the run.
    """
    try:
        await broker.stop(f"the driver ended: {type(error).__name__}")
    except RladError as unreachable:
        logger.warning("broker=unreachable while=stopping reason=%s", unreachable)
