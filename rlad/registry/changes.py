"""Changes of a model in the registry: entries of its change log, and the state after each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasChange:
    """Move of an alias.

    Attributes:
        sequence: Number of the change in the model's change log.
        kind: `set` or `rollback`. A rollback undoes the last `set`, which determines the next rollback's target.
        alias: Name of the alias.
        previous: Version before the move; None if the alias did not exist.
        version: Version after the move.
        reason: Reason, as free text.
        by: User and machine.
        at: Time, UTC, ISO 8601.
        approved_by: Person who approved the promotion; None if it needed no approval.
        requested_by: Requester of the approved promotion; None if it needed no approval.
    """

    sequence: int
    kind: Literal["set", "rollback"]
    alias: str
    previous: int | None
    version: int
    reason: str
    by: str
    at: str
    approved_by: str | None = None
    requested_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retirement:
    """Retirement of versions. Retired versions cannot be used any more, and their files may be deleted."""

    sequence: int
    versions: tuple[int, ...]
    by: str
    at: str
    kind: Literal["retire"] = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionNotes:
    """Change of the tags or the description of a version.

    Attributes:
        sequence: Number of the change in the model's change log.
        version: Version that the notes belong to.
        tags: All tags after the change: value by key.
        description: Description after the change; empty for none.
        by: User and machine.
        at: Time, UTC, ISO 8601.
        kind: Kind of the change.
    """

    sequence: int
    version: int
    tags: Mapping[str, str]
    description: str
    by: str
    at: str
    kind: Literal["notes"] = "notes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRule:
    """Decision whether `production` of a model moves only with the approval of a person."""

    sequence: int
    is_required: bool
    reason: str
    by: str
    at: str
    kind: Literal["approval-rule"] = "approval-rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRequest:
    """Request to move `production` to a version. Another person approves or refuses it.

    Attributes:
        sequence: Number of the change in the model's change log.
        version: Version to promote.
        expected: Version in production at the request; None if there was none.
        reason: Reason of the requester, as free text.
        requester: Name of the requester: a person, or `schedule NAME`.
        by: User and machine.
        at: Time, UTC, ISO 8601.
        kind: Kind of the change.
    """

    sequence: int
    version: int
    expected: int | None
    reason: str
    requester: str
    by: str
    at: str
    kind: Literal["request"] = "request"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRefusal:
    """Refusal of the open requests to promote a version."""

    sequence: int
    version: int
    reason: str
    refused_by: str
    by: str
    at: str
    kind: Literal["refuse"] = "refuse"


Change = AliasChange | Retirement | VersionNotes | ApprovalRule | PromotionRequest | PromotionRefusal


@dataclass(frozen=True, slots=True, kw_only=True)
class LineState:
    """State of a model after a change. Entries of earlier versions of rlad lack the later fields.

    Attributes:
        sequence: Number of the change; 0 before the first.
        aliases: Version by alias.
        retired: Retired versions.
        notes: Number of the change with the present notes of a version, by version.
        is_approval_required: Whether `production` moves only with the approval of a person.
        requests: Open requests, at most one for each requester. All of them expect the present production version:
            a move of `production` closes them.
    """

    sequence: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    retired: tuple[int, ...] = ()
    notes: Mapping[int, int] = field(default_factory=dict)
    is_approval_required: bool = False
    requests: tuple[PromotionRequest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """Entry of the change log: a change and the state after it.

    Attributes:
        entry_id: Random id, by which a writer recognizes its own entry.
        change: The change.
        state: State after the change.
    """

    entry_id: str
    change: Change
    state: LineState
