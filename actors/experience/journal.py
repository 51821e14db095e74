"""Record of all that the driver holds for the broker: enough to rebuild it after a restart. No Ray here.

The driver owns the objects behind the groups, so it holds their records until a checkpoint contains them. The broker
keeps no state that the driver, the ledger and the learner together do not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.experience.group import ExperienceGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class LostGroup:
    """Group whose data were lost with a node, and which is issued again.

    Attributes:
        step: Step of the group.
        uid: Uid of the group.
        attempt: Its new attempt number.
    """

    step: int
    uid: str
    attempt: int


@dataclass(slots=True, kw_only=True)
class HeldStep:
    """A step that no checkpoint contains yet.

    Attributes:
        updates: Uids of the groups of each optimizer update of a pass, in prompt order.
        groups: Groups that the broker has accepted, by uid.
    """

    updates: list[list[str]]
    groups: dict[str, ExperienceGroup] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class DriverJournal:
    """Calls of the driver that the broker has answered.

    Attributes:
        steps: Steps that no checkpoint contains yet, by number.
        end_reason: Reason of a request to end with a checkpoint; None without one.
        stop_reason: Reason of a stop; None without one.
        is_dismissed: Whether the learner's ranks may end.
    """

    steps: dict[int, HeldStep] = field(default_factory=dict)
    end_reason: str | None = None
    stop_reason: str | None = None
    is_dismissed: bool = False

    def record(self, method: str, arguments: tuple[Any, ...]) -> None:
        """Record a call that the broker has answered. Calls that the ledger alone records are ignored."""
        match method, arguments:
            case "open_step", (step, updates):
                self.steps[step] = HeldStep(updates=[[uid for uid, _ in update] for update in updates])
            case "refill" | "replace_abandoned", (step, replaced, _, uid, _) if step in self.steps:
                for update in self.steps[step].updates:
                    update[:] = [uid if each == replaced else each for each in update]
            case "add", (step, group) if step in self.steps:
                self.steps[step].groups[group.uid] = group
            case "end", (reason,):
                self.end_reason = reason
            case "stop", (reason,):
                self.stop_reason = reason
            case "dismiss", ():
                self.is_dismissed = True
            case _:
                pass

    def forget(self, lost: LostGroup) -> None:
        """Release a group whose data are lost, unless its new attempt is here already."""
        step = self.steps.get(lost.step)
        held = None if step is None else step.groups.get(lost.uid)
        if step is not None and held is not None and held.attempt < lost.attempt:
            del step.groups[lost.uid]

    def commit(self, checkpoint: int) -> None:
        """Release the steps before `checkpoint`, which a durable checkpoint contains."""
        self.steps = {step: held for step, held in self.steps.items() if step >= checkpoint}
