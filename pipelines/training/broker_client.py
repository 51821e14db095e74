"""Driver's client of the experience broker: typed methods, each with a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

from actors.experience.broker import ExperienceBroker, StepReport
from actors.experience.group import ExperienceGroup
from actors.experience.journal import DriverJournal, LostGroup
from pipelines.training.deadlines import poll, within
from rlad.errors import BrokerRestartedError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_ANSWER_TIMEOUT_S = 60.0
# Time for a broker that has died to be restarted, and the pause between two attempts.
_RESTART_TIMEOUT_S = 120.0
_DEAD_TIMEOUT_S = 10.0
_RESTART_PAUSE_S = 0.2


class BrokerClient:
    """Typed calls to an `ExperienceBroker`. All methods belong to one event loop.

    Calls made while an earlier call is in progress are sent together in the next one: a busy driver makes one remote
    call for many groups, an idle one sends at once. The order of calls is kept. A missing answer delays a caller by at
    most its own deadline.

    A call that meets the end of the broker's process is repeated once Ray has restarted it. The client holds what the
    broker has answered, groups included, until a checkpoint contains their step, and hands it to a restarted broker.
    """

    def __init__(self, handle: Any) -> None:
        """
        Args:
            handle: Actor handle of an `ExperienceBroker`, or any object whose methods have an awaitable `remote`.
        """
        self._handle = handle
        self._journal = DriverJournal()
        self._committed = 0
        self._queued: list[tuple[str, tuple[object, ...], asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def reopen(self, checkpoint: int) -> list[str]:
        """Take over the run from `checkpoint`. Return the uids of the groups before it."""
        return await self._send(ExperienceBroker.reopen, checkpoint)

    async def open_step(self, step: int, updates: list[list[tuple[str, str]]]) -> dict[str, int]:
        """Issue the groups of a step, given as (uid, prompt id) by update. Return the attempt number of each uid."""
        return await self._send(ExperienceBroker.open_step, step, updates)

    async def reissue(self, uid: str) -> int:
        """Issue a group again. Return its new attempt number."""
        return await self._send(ExperienceBroker.reissue, uid)

    async def refill(self, step: int, dropped: str, attempt: int, uid: str, prompt_id: str) -> int:
        """Drop a sampled group and issue another one in its place. Return the new group's attempt number."""
        return await self._send(ExperienceBroker.refill, step, dropped, attempt, uid, prompt_id)

    async def replace_abandoned(self, step: int, abandoned: str, attempt: int, uid: str, prompt_id: str) -> int:
        """Abandon a group that failed and issue another one in its place. Return the new group's attempt number."""
        return await self._send(ExperienceBroker.replace_abandoned, step, abandoned, attempt, uid, prompt_id)

    async def record_sampled(self, uid: str, attempt: int) -> None:
        """Record that a group is sampled."""
        await self._send(ExperienceBroker.record_sampled, uid, attempt)

    async def add(self, step: int, group: ExperienceGroup) -> None:
        """Add a sampled and scored group to its step."""
        await self._send(ExperienceBroker.add, step, group)

    async def counts(self) -> dict[str, int]:
        """Count the ledger's groups by state."""
        return await self._send(ExperienceBroker.counts)

    async def dismiss(self) -> None:
        """Let the learner's ranks end: no more published weights will be requested."""
        await self._send(ExperienceBroker.dismiss)

    async def end(self, reason: str) -> bool:
        """Ask the learner to write a checkpoint and to end. Return whether it has started."""
        return await self._send(ExperienceBroker.end, reason)

    async def stop(self, reason: str) -> None:
        """Make every present and later wait at the broker raise `RunStoppedError`."""
        await self._send(ExperienceBroker.stop, reason)

    async def wait_started(self, *, deadline_s: float) -> StepReport:
        """Wait until the learner has started.

        Raises:
            DeadlineError: It has not started within `deadline_s`.
        """
        return await self._poll(
            ExperienceBroker.wait_started, deadline_s=deadline_s, waiting_for="the learner to start"
        )

    async def wait_finished(self, step: int, *, deadline_s: float) -> StepReport:
        """Wait until the learner has finished a step.

        Raises:
            DeadlineError: It has not finished within `deadline_s`.
        """
        waiting_for = f"the learner to finish step {step}"
        return await self._poll(ExperienceBroker.wait_finished, step, deadline_s=deadline_s, waiting_for=waiting_for)

    async def wait_exported(self, *, deadline_s: float) -> None:
        """Wait until the learner has exported the student.

        Raises:
            DeadlineError: It has not exported within `deadline_s`.
        """
        await self._poll(
            ExperienceBroker.wait_exported, deadline_s=deadline_s, waiting_for="the learner to export the student"
        )

    async def wait_lost(self) -> list[LostGroup]:
        """Wait without limit for groups whose data were lost with a node. They are issued already."""
        lost: list[LostGroup] | None = None
        while not lost:
            lost = await self._call(ExperienceBroker.wait_lost.__name__)
        for each in lost:
            self._journal.forget(each)
        return lost

    @property
    def committed(self) -> int:
        """Number of steps that the newest durable checkpoint contains, as of the broker's last answer."""
        return self._committed

    async def _send(self, method: Callable[[ExperienceBroker, *Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
        """Queue a call that the broker answers at once, and await its answer.

        Raises:
            RladError: The error that the method raised.
            DeadlineError: No answer in time.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        name = method.__name__
        self._queued.append((name, arguments, answer))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_queued())
        deadline_s = _ANSWER_TIMEOUT_S + _RESTART_TIMEOUT_S
        return await within(answer, deadline_s=deadline_s, waiting_for=f"the broker ({name})")

    async def _poll(
        self,
        method: Callable[[ExperienceBroker, *Arguments], Awaitable[T | None]],
        *arguments: *Arguments,
        deadline_s: float,
        waiting_for: str,
    ) -> T:
        """Call a long-polling method until it returns a result."""

        def ask() -> Awaitable[T | None]:
            return self._call(method.__name__, *arguments)

        return await poll(ask, deadline_s=deadline_s, waiting_for=waiting_for)

    async def _call(self, method: str, *arguments: object) -> Any:
        """Call a method, and repeat the call while the broker restarts.

        Raises:
            WorkerLostError: The broker died and was not restarted in time.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            try:
                call = getattr(self._handle, method).remote(*arguments)
                return await within(call, deadline_s=_ANSWER_TIMEOUT_S, waiting_for=f"the broker ({method})")
            except BrokerRestartedError:
                logger.warning("broker=restarted steps=%s", sorted(self._journal.steps))
                await self._call(ExperienceBroker.restore.__name__, self._journal)
            except Exception as error:
                # Imported late: a simulation uses this client without Ray.
                from ray.exceptions import ActorDiedError, RayActorError

                from actors.remote_errors import as_rlad_error

                if not isinstance(error, RayActorError):
                    raise
                is_dead = isinstance(error, ActorDiedError)  # also said of a call that was under way at a restart
                allowed_s = _DEAD_TIMEOUT_S if is_dead else _RESTART_TIMEOUT_S
                if error.actor_init_failed or clock() - began > allowed_s:
                    raise as_rlad_error(error, who="the broker") from error
                await asyncio.sleep(_RESTART_PAUSE_S)

    async def _send_queued(self) -> None:
        while self._queued:
            # Without calls whose caller has given up.
            calls, self._queued = [call for call in self._queued if not call[2].done()], []
            try:
                answers, committed = await self._call("answer", [(method, arguments) for method, arguments, _ in calls])
            except Exception as error:  # noqa: BLE001 - any error is passed to every caller
                answers = [error] * len(calls)
            else:
                self._committed = max(self._committed, committed)
                self._journal.commit(self._committed)
            for (method, arguments, future), answer in zip(calls, answers, strict=True):
                if not isinstance(answer, Exception):
                    self._journal.record(method, arguments)
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
