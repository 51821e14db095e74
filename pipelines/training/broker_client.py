"""A driver's side of the experience broker: every call has a deadline and says who was waited for."""

from __future__ import annotations

import asyncio
from typing import Any

from pipelines.training.deadlines import poll, within

_ANSWER_TIMEOUT_S = 60.0


class BrokerClient:
    """Calls the broker's methods by name. All of it belongs to one event loop.

    What is told while an earlier call is under way travels with the next one: a driver that is busy makes one call for many groups, and one that is not
    tells at once. Nothing overtakes, and an answer that does not come holds nobody up for longer than its own deadline.
    """

    def __init__(self, handle: Any) -> None:
        """
        Args:
            handle: of the actor; or anything else whose methods have a `remote` that can be awaited.
        """
        self._handle = handle
        self._untold: list[tuple[str, tuple[object, ...], asyncio.Future[Any]]] = []
        self._telling: asyncio.Task[None] | None = None

    async def tell(self, method: str, *arguments: object) -> Any:
        """Call a method that answers at once.

        Raises:
            RladError: what the method raised.
            DeadlineError: no answer in time.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._untold.append((method, arguments, answer))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_all())
        return await within(answer, deadline_s=_ANSWER_TIMEOUT_S, waiting_for=f"the broker ({method})")

    async def poll(self, method: str, *arguments: object, deadline_s: float, waiting_for: str) -> Any:
        """Call a method that answers with nothing as long as there is nothing, until it has something.

        Raises:
            DeadlineError: it had nothing within `deadline_s`.
        """
        return await poll(lambda: self._call(method, *arguments), deadline_s=deadline_s, waiting_for=waiting_for)

    async def _call(self, method: str, *arguments: object) -> Any:
        return await within(
            getattr(self._handle, method).remote(*arguments),
            deadline_s=_ANSWER_TIMEOUT_S,
            waiting_for=f"the broker ({method})",
        )

    async def _tell_all(self) -> None:
        while self._untold:
            told, self._untold = (
                [each for each in self._untold if not each[2].done()],
                [],
            )  # without those whose caller has given up
            try:
                answers = await self._call("answer", [(method, arguments) for method, arguments, _ in told])
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked gets to know it
                answers = [error] * len(told)
            for (*_, future), answer in zip(told, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
