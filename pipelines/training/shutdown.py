"""The end of a run: after the last step, on request, and after a failure.

A run that is stopped (`rlad stop`, SIGTERM) writes a checkpoint first, within a grace period. A step in progress is
dropped: its groups are issued again when the run is continued. If some of its optimizer updates are applied already,
the learner finishes the step first.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from typing import NoReturn

from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.training.broker_client import BrokerClient
from pipelines.training.evaluation import ScheduledEvaluation
from rlad.errors import RladError, StopRequestedError

logger = logging.getLogger(__name__)


async def finish_run(run: ResolvedRun, broker: BrokerClient, evaluation: ScheduledEvaluation) -> None:
    """Finish a run whose student is exported: evaluate it, and let the learner end."""
    await evaluation.evaluate_if_due(run.config.training.steps)
    await broker.dismiss()


async def stop_after_failure(broker: BrokerClient, error: BaseException) -> None:
    """Tell learner and waiting callers that the run ends early.

    Never raises: an unreachable broker must not replace the error that ended the run.
    """
    try:
        await broker.stop(f"the driver ended: {type(error).__name__}")
    except RladError as unreachable:
        logger.warning("broker=unreachable while=stopping reason=%s", unreachable)


class EarlyEnd:
    """Ends a run early with a checkpoint."""

    def __init__(self, broker: BrokerClient, *, grace_period_s: float) -> None:
        """
        Args:
            broker: Client of the broker, which passes the request to the learner.
            grace_period_s: Time for the checkpoint, seconds.
        """
        self._broker, self._grace_period_s = broker, grace_period_s
        self.is_terminated = False
        """Whether SIGTERM asked for the end."""

    async def checkpoint_and_stop(self, reason: str) -> NoReturn:
        """Ask the learner for a checkpoint and wait for its end, which ends the run and this call.

        Args:
            reason: Reason, for the error message.

        Raises:
            StopRequestedError: The learner has not started, or has not ended within the grace period.
        """
        if not await self._broker.end(reason):
            raise StopRequestedError(f"{reason} before the learner had started")
        logger.info("checkpoint=requested reason=%s grace_period_s=%g", reason, self._grace_period_s)
        await asyncio.sleep(self._grace_period_s)
        raise StopRequestedError(
            f"{reason}; the learner wrote no checkpoint within {self._grace_period_s:g} s "
            "(checkpoints.grace_period_s), --resume continues from the last one"
        )

    async def on_sigterm(self) -> None:
        """Wait for SIGTERM, then end the run. Does nothing outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop, terminated, before = asyncio.get_running_loop(), asyncio.Event(), signal.getsignal(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, terminated.set)
        try:
            await terminated.wait()  # unlimited wait: cancelled at the end of the run
            self.is_terminated = True
            await self.checkpoint_and_stop("stopped by SIGTERM")
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)
