"""Governance of a model: tags and descriptions of its versions, and promotions that another person approves.

All of it are changes in the model's change log, with the compare-and-swap of aliases: a request, its approval and a
retention cannot miss each other. Names of persons are declarations. Who may write to the store can write any name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlad.credentials import require_no_secrets
from rlad.errors import AliasConflictError, ModelNotFoundError, RegistryError, SelfApprovalError
from rlad.registry.change_log import ChangeLog, alias_moved, author, entry_after, utc_now
from rlad.registry.changes import (
    ApprovalRule,
    Change,
    LineState,
    LogEntry,
    PromotionRefusal,
    PromotionRequest,
    VersionNotes,
)
from rlad.registry.files import in_parallel
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import PRODUCTION, require_name

SCHEDULE_REQUESTER = "schedule "
"""Prefix of requesters that are schedules. No person has such a name."""

_TAG_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_MAX_TAG_CHARACTERS, _MAX_TAGS, _MAX_DESCRIPTION_CHARACTERS, _MAX_NAME_CHARACTERS = 200, 50, 4000, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGovernance:
    """Notes, approval rule and promotion requests of the model `name`."""

    registry: ModelRegistry
    name: str

    def __post_init__(self) -> None:
        require_name(self.name, "model")

    # Notes

    def notes(self) -> dict[int, VersionNotes]:
        """Return the tags and descriptions by version. Versions without any are left out."""
        numbers = list(self._log.state().notes.values())
        changes = in_parallel(lambda number: self._log.entry(number).change, numbers)
        return {change.version: change for change in changes if isinstance(change, VersionNotes)}

    def annotate(
        self,
        version: int,
        *,
        tags: Mapping[str, str] | None = None,
        remove: Sequence[str] = (),
        description: str | None = None,
    ) -> VersionNotes:
        """Set and remove tags of a version, and replace its description.

        Args:
            version: Number of the version.
            tags: Tags to set: value by key. Other tags stay.
            remove: Keys of tags to remove. A key that is not set is ignored.
            description: New description; empty removes it, None keeps it.

        Returns:
            The notes after the change.

        Raises:
            RegistryError: A tag or the description is invalid.
            ConfigError: A tag or the description contains a secret.
            ModelNotFoundError: There is no such version.
        """
        self.registry.get(self.name, version)
        tags = dict(tags or {})
        _require_valid_notes(tags, description)
        require_no_secrets({**tags, "description": description}, where=f"the notes of {self.name}@{version}")
        after: VersionNotes | None = None

        def decide(state: LineState) -> LogEntry | None:
            nonlocal after
            self._require_live(state, version)
            present = self._log.entry(state.notes[version]).change if version in state.notes else None
            before = present if isinstance(present, VersionNotes) else None
            kept = {key: value for key, value in (before.tags if before else {}).items() if key not in remove}
            after = VersionNotes(
                sequence=state.sequence + 1,
                version=version,
                tags={**kept, **tags},
                description=(before.description if before else "") if description is None else description,
                by=author(),
                at=utc_now(),
            )
            if len(after.tags) > _MAX_TAGS:
                raise RegistryError(f"{self.name}@{version} would have {len(after.tags)} tags; at most {_MAX_TAGS}")
            if (after.tags, after.description) == ((before.tags, before.description) if before else ({}, "")):
                return None
            return entry_after(state, after, notes={**state.notes, version: after.sequence})

        self._log.append(decide)
        assert after is not None
        return after

    # Approval

    @property
    def is_approval_required(self) -> bool:
        """Whether `production` moves only with the approval of a person."""
        return self._log.state().is_approval_required

    def require_approval(self, is_required: bool, *, reason: str) -> None:
        """Set whether `production` moves only with the approval of a person. Rollbacks never need it."""
        if not self.registry.versions(self.name):
            raise ModelNotFoundError(f"no model {self.name!r} in the registry at {self.registry.uri}")

        def decide(state: LineState) -> LogEntry | None:
            if state.is_approval_required == is_required:
                return None
            rule = ApprovalRule(
                sequence=state.sequence + 1, is_required=is_required, reason=reason, by=author(), at=utc_now()
            )
            return entry_after(state, rule, is_approval_required=is_required)

        self._log.append(decide)

    def requests(self) -> tuple[PromotionRequest, ...]:
        """Return the open promotion requests, oldest first."""
        return self._log.state().requests

    def request(self, version: int, *, expected: int | None, reason: str, requester: str) -> None:
        """Request the promotion of a version. The requester's earlier request is replaced.

        Requesting the same version again changes nothing.

        Args:
            version: Version to promote.
            expected: Version that is in production now; None if there is none.
            reason: Reason to record, as free text.
            requester: Name of the requester: a person, or `schedule NAME`.

        Raises:
            AliasConflictError: Production is not at the expected version.
            ModelNotFoundError: There is no such version.
            RegistryError: The version is in production already, or the name is invalid.
        """
        self.registry.get(self.name, version)
        requester = _valid_name(requester)

        def decide(state: LineState) -> LogEntry | None:
            self._require_live(state, version)
            present = state.aliases.get(PRODUCTION)
            if present == version:
                raise RegistryError(f"{self.name}@{version} is in {PRODUCTION} already")
            if present != expected:
                raise AliasConflictError(
                    f"expected {PRODUCTION} of {self.name} in {self.registry.uri} at version {expected}; it is at "
                    f"{present}. Another process has moved it: decide again"
                )
            own = [each for each in state.requests if _is_same(each.requester, requester)]
            if any(each.version == version for each in own):
                return None
            request = PromotionRequest(
                sequence=state.sequence + 1,
                version=version,
                expected=expected,
                reason=reason,
                requester=requester,
                by=author(),
                at=utc_now(),
            )
            others = [each for each in state.requests if each not in own]
            return entry_after(state, request, requests=(*others, request))

        self._log.append(decide)

    def approve(self, version: int, *, approver: str, reason: str) -> None:
        """Approve an open request: `production` moves to the version.

        Args:
            version: Version whose promotion was requested.
            approver: Name of the person who approves.
            reason: Reason to record, as free text.

        Raises:
            SelfApprovalError: The approver is the requester.
            RegistryError: There is no open request for the version, or the name is invalid.
        """
        approver = require_person(approver)

        def decide(state: LineState) -> LogEntry:
            requests = self._open_requests(state, version)
            others = [each for each in requests if not _is_same(each.requester, approver)]
            if not others:
                raise SelfApprovalError(
                    f"{approver} requested the promotion of {self.name}@{version}: another person has to approve it"
                )
            return alias_moved(
                state,
                PRODUCTION,
                version,
                kind="set",
                reason=reason,
                requested_by=others[-1].requester,
                approved_by=approver,
            )

        self._log.append(decide)

    def refuse(self, version: int, *, by: str, reason: str) -> None:
        """Close the open requests for a version without a promotion. Requesters may withdraw their own.

        Raises:
            RegistryError: There is no open request for the version, or the name is invalid.
        """
        person = require_person(by)

        def decide(state: LineState) -> LogEntry:
            closed = self._open_requests(state, version)
            refusal = PromotionRefusal(
                sequence=state.sequence + 1,
                version=version,
                reason=reason,
                refused_by=person,
                by=author(),
                at=utc_now(),
            )
            return entry_after(state, refusal, requests=tuple(each for each in state.requests if each not in closed))

        self._log.append(decide)

    # History

    def changes(self) -> list[Change]:
        """Return all changes of the model, oldest first."""
        return [entry.change for entry in self._log.entries()]

    @property
    def _log(self) -> ChangeLog:
        return ChangeLog(store=self.registry.store, name=self.name)

    def _require_live(self, state: LineState, version: int) -> None:
        if version in state.retired:
            raise ModelNotFoundError(f"{self.name}@{version} was retired in the registry at {self.registry.uri}")

    def _open_requests(self, state: LineState, version: int) -> list[PromotionRequest]:
        found = [each for each in state.requests if each.version == version]
        if not found:
            others = ", ".join(f"{self.name}@{each.version} by {each.requester}" for each in state.requests) or "none"
            raise RegistryError(
                f"no open request to promote {self.name}@{version} in the registry at {self.registry.uri}; open "
                f"requests: {others}. A move of {PRODUCTION} closes all requests"
            )
        return found


def _require_valid_notes(tags: Mapping[str, str], description: str | None) -> None:
    for key, value in tags.items():
        if not _TAG_KEY.fullmatch(key) or not _is_line(value, _MAX_TAG_CHARACTERS):
            raise RegistryError(
                f"invalid tag {key[:80]!r}: a key has up to 63 letters, digits, and any of . - _ / , "
                f"and starts with a letter or digit; a value is one line of up to {_MAX_TAG_CHARACTERS} characters"
            )
    if description is not None and len(description) > _MAX_DESCRIPTION_CHARACTERS:
        raise RegistryError(
            f"a description has at most {_MAX_DESCRIPTION_CHARACTERS} characters; got {len(description)}"
        )


def _valid_name(name: str) -> str:
    stripped = " ".join(name.split())
    if not stripped or not _is_line(stripped, _MAX_NAME_CHARACTERS):
        raise RegistryError(f"expected a name of up to {_MAX_NAME_CHARACTERS} printable characters; got {name[:80]!r}")
    return stripped


def require_person(name: str) -> str:
    """Return the name of a person, with single spaces.

    Raises:
        RegistryError: The name is empty or too long, or that of a schedule.
    """
    person = _valid_name(name)
    if f"{person} ".casefold().startswith(SCHEDULE_REQUESTER):
        raise RegistryError(f"a schedule cannot approve or refuse a promotion; expected a person, got {person!r}")
    return person


def _is_same(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()


def _is_line(text: str, limit: int) -> bool:
    return len(text) <= limit and text.isprintable()
