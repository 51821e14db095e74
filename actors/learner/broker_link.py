"""A learner rank's calls to the broker, which are repeated while the broker restarts."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

from ray.actor import ActorHandle

from actors.experience.broker import ExperienceBroker, StepReport
from actors.learner.collectives import answer
from actors.messages import WeightsPublication
from rlad.errors import BrokerRestartedError, WorkerLostError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

# Time for a broker that has died to be restarted and to get the groups from the driver, and the pause between attempts.
_RESTART_TIMEOUT_S = 180.0
_RESTART_PAUSE_S = 0.2


class BrokerLink:
    """Calls of one rank to the broker. Rank 0 holds its reports until the driver has taken the weights in them."""

    def __init__(self, handle: ActorHandle) -> None:
        """
        Args:
            handle: Handle of the `ExperienceBroker`.
        """
        self._handle = handle
        self._reports: dict[int, StepReport] = {}
        self._is_exported = False

    def call(self, method: Callable[[ExperienceBroker, *Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
        """Call a method that answers at once or after a long poll.

        Raises:
            RladError: The call failed, or the broker was not restarted in time.
        """
        name = method.__name__
        deadline = time.monotonic() + _RESTART_TIMEOUT_S
        while True:
            try:
                result: T = self._ask(name, *arguments)
                return result
            except (WorkerLostError, BrokerRestartedError) as error:
                if time.monotonic() > deadline:
                    raise
                logger.warning("broker=restarting method=%s reason=%s", name, error)
                if isinstance(error, BrokerRestartedError):
                    self._report_again()
            time.sleep(_RESTART_PAUSE_S)

    def report_started(self, publications: list[WeightsPublication]) -> None:
        """Report the start of the ranks, with the weights that they publish. Rank 0 only."""
        version = publications[0].manifest.version
        self.call(ExperienceBroker.report_started, version, publications)
        self._reports = {version: StepReport(version=version, publications=publications, metrics={})}

    def finish_step(self, publications: list[WeightsPublication], metrics: dict[str, float]) -> None:
        """Report that a step is trained, with the weights that it produced. Rank 0 only."""
        version = publications[0].manifest.version
        awaited = self.call(ExperienceBroker.finish_step, version - 1, publications, metrics)
        self._reports = {earlier: report for earlier, report in self._reports.items() if earlier >= awaited}
        self._reports[version] = StepReport(version=version, publications=publications, metrics=metrics)

    def report_exported(self) -> None:
        """Report that the student is exported. Rank 0 only."""
        self.call(ExperienceBroker.report_exported)
        self._is_exported = True

    def _report_again(self) -> None:
        """Hand the reports to a restarted broker. Ranks without reports leave that to rank 0."""
        if not self._reports:
            return
        try:
            self._ask("recover_learner", list(self._reports.values()), self._is_exported)
        except WorkerLostError as error:  # it died again, so the next call is repeated too
            logger.warning("broker=restarting method=recover_learner reason=%s", error)

    def _ask(self, name: str, *arguments: Any) -> Any:
        return answer(getattr(self._handle, name).remote(*arguments), f"the broker ({name})")
