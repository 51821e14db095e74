"""A driver's side of the experience broker: every call has a deadline and says who was waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.waiting import poll, within

_ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerClient:
    """Calls the broker's methods by name.

    Attributes:
        handle: of the actor; or anything else whose methods have a `remote` that can be awaited.
    """

    handle: Any

    async def tell(self, method: str, *arguments: object) -> Any:
        """Call a method that answers at once.

        Raises:
            DeadlineError: no answer in time.
        """
        return await within(getattr(self.handle, method).remote(*arguments), deadline_s=_ANSWER_TIMEOUT_S, waiting_for=f"the broker ({method})")

    async def poll(self, method: str, *arguments: object, deadline_s: float, waiting_for: str) -> Any:
        """Call a method that answers with nothing as long as there is nothing, until it has something.

        Raises:
            DeadlineError: it had nothing within `deadline_s`.
        """
        return await poll(lambda: self.tell(method, *arguments), deadline_s=deadline_s, waiting_for=waiting_for)
