"""Webhooks of a registry: their settings, the events they are sent, and what has been delivered.

    _webhooks/
      ops/hook.json                                     settings; refers to the URL and the secret by name only
      ops/deliveries/kk-student/change-000007.delivered.json
                                change-000009.failed-1.json   a failed delivery (dead letter)

Events are the entries of the change logs and the manifests of versions, which are never lost. An event without a
record is still to be sent, so that a process that dies between a change and its delivery loses nothing. Two processes
that deliver at the same time may both send an event: receivers recognise it by its id.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlad.errors import RegistryError
from rlad.registry.change_log import ChangeLog, author, numbers_in, utc_now
from rlad.registry.changes import AliasChange, Change, PromotionRefusal, PromotionRequest
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import PRODUCTION, from_json, require_name, to_json

EventKind = Literal["registered", "requested", "approved", "refused", "promoted", "rolled_back"]
"""Event of a model.

- `registered`: a version was added.
- `requested`, `refused`: a promotion was requested, or its request was closed without a promotion.
- `approved`: production moved to a version by the approval of a request.
- `promoted`: production moved to a version without a request.
- `rolled_back`: production moved back to an earlier version.
"""

EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)
_ROOT = "_webhooks"  # not the name of a model
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DELIVERY = re.compile(r"(?P<key>(?:change|version)-\d+)\.(?:(?P<done>delivered|none)|failed-(?P<failure>\d+))\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Numbers of the last change and the last version of a model."""

    change: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Webhook of a registry.

    Attributes:
        name: Name of the webhook.
        url_env: Environment variable with the URL.
        secret_env: Environment variable with the secret of the signature; None if it is in a file.
        secret_file: File with the secret; None if it is in an environment variable.
        events: Events to send.
        after: Position of each model when the webhook was added; earlier events are not sent.
        by: User and machine that added it.
        at: Time at which it was added, UTC, ISO 8601.
    """

    name: str
    url_env: str
    secret_env: str | None
    secret_file: str | None
    events: tuple[EventKind, ...]
    after: Mapping[str, Position]
    by: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Event of a model, as it is sent.

    Attributes:
        key: Key among the deliveries of the model: `change-000007` or `version-000003`.
        kind: Kind of the event.
        model: Name of the model.
        at: Time of the event, UTC, ISO 8601.
        facts: Further values of the message.
    """

    key: str
    kind: EventKind
    model: str
    at: str
    facts: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Id by which receivers recognise an event that is sent twice."""
        return f"{self.model}-{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Record of a delivery that succeeded, or of one that failed.

    Attributes:
        delivery_id: Random id of the record.
        attempts: Number of requests.
        error: Description of the last error; None after a success.
        at: Time, UTC, ISO 8601.
    """

    delivery_id: str
    attempts: int
    error: str | None
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """Webhooks of a registry."""

    registry: ModelRegistry

    def hooks(self) -> list[Webhook]:
        """Return all webhooks by name."""
        names = [entry.name for entry in self.registry.store.entries(_ROOT) if not entry.is_file]
        return [hook for name in names if (hook := self._hook(name)) is not None]

    def add(
        self,
        name: str,
        *,
        url_env: str,
        secret_env: str | None = None,
        secret_file: str | None = None,
        events: Sequence[str] = EVENT_KINDS,
    ) -> Webhook:
        """Add a webhook. It is sent the events from now on.

        Raises:
            RegistryError: A setting is invalid, or a webhook of that name exists.
        """
        require_name(name, "alias")
        if (secret_env is None) == (secret_file is None):
            raise RegistryError("a webhook requires either a variable or a file with its secret")
        for variable in filter(None, (url_env, secret_env)):
            if not _VARIABLE.fullmatch(variable):
                raise RegistryError(f"expected the name of an environment variable; got {variable[:40]!r}")
        if unknown := [event for event in events if event not in EVENT_KINDS]:
            raise RegistryError(f"unknown event {unknown[0]!r}; expected {', '.join(EVENT_KINDS)}")
        after = {model: self._position(model) for model in self.registry.names()}
        hook = Webhook(
            name=name,
            url_env=url_env,
            secret_env=secret_env,
            secret_file=secret_file,
            events=tuple(kind for kind in EVENT_KINDS if kind in events),
            after=after,
            by=author(),
            at=utc_now(),
        )
        if not self.registry.store.create(_hook_path(name), to_json(hook)):
            raise RegistryError(f"webhook {name!r} exists already in {self.registry.uri}: remove it first")
        return hook

    def remove(self, name: str) -> None:
        """Remove a webhook with the records of its deliveries.

        Raises:
            RegistryError: There is no such webhook.
        """
        if self._hook(require_name(name, "alias")) is None:
            raise RegistryError(f"no webhook {name!r} in {self.registry.uri}")
        self.registry.store.delete_file(_hook_path(name))
        self.registry.store.delete_directory(f"{_ROOT}/{name}")

    def undelivered(self, hook: Webhook) -> tuple[list[Event], list[tuple[Event, Delivery]]]:
        """Return the events that have not been sent yet, and those whose last delivery failed. Oldest first.

        Changes that are no event of the webhook are recorded, so that they are not read again.
        """
        pending: list[Event] = []
        failed: list[tuple[Event, Delivery]] = []
        for model in self.registry.names():
            done, failures = self._records(hook, model)
            for key in self._keys(hook, model):
                if key in done:
                    continue
                event = self._event(model, key)
                if event is None or event.kind not in hook.events:
                    self._create(hook, model, f"{key}.none", Delivery(**_record(0, None)))
                elif key in failures:
                    failed.append((event, self._failure(hook, event, failures[key])))
                else:
                    pending.append(event)
        return sorted(pending, key=_order), sorted(failed, key=lambda each: _order(each[0]))

    def record(self, hook: Webhook, event: Event, *, attempts: int, error: str | None) -> None:
        """Record a delivery. One with an error is a dead letter until it is delivered later."""
        delivery = Delivery(**_record(attempts, error))
        if error is None:
            self._create(hook, event.model, f"{event.key}.delivered", delivery)
            return
        number = self._records(hook, event.model)[1].get(event.key, 0) + 1
        while not self._create(hook, event.model, f"{event.key}.failed-{number}", delivery):
            number += 1

    def _hook(self, name: str) -> Webhook | None:
        content = self.registry.store.read(_hook_path(name))
        return None if content is None else from_json(Webhook, content, f"{_hook_path(name)} in {self.registry.uri}")

    def _position(self, model: str) -> Position:
        changes = numbers_in(self.registry.store, f"{model}/changes")
        versions = numbers_in(self.registry.store, f"{model}/versions")
        return Position(change=changes[-1] if changes else 0, version=versions[-1] if versions else 0)

    def _keys(self, hook: Webhook, model: str) -> list[str]:
        after, store = hook.after.get(model, Position()), self.registry.store
        versions = [number for number in numbers_in(store, f"{model}/versions") if number > after.version]
        changes = [number for number in numbers_in(store, f"{model}/changes") if number > after.change]
        return [f"version-{number:06d}" for number in versions] + [f"change-{number:06d}" for number in changes]

    def _records(self, hook: Webhook, model: str) -> tuple[set[str], dict[str, int]]:
        """Return the keys that are done, and the number of failures of each key."""
        done: set[str] = set()
        failures: dict[str, int] = {}
        for entry in self.registry.store.entries(_deliveries(hook, model)):
            found = _DELIVERY.fullmatch(entry.name)
            if found is not None and found["done"]:
                done.add(found["key"])
            elif found is not None:
                failures[found["key"]] = max(failures.get(found["key"], 0), int(found["failure"]))
        return done, failures

    def _failure(self, hook: Webhook, event: Event, number: int) -> Delivery:
        path = f"{_deliveries(hook, event.model)}/{event.key}.failed-{number}.json"
        return from_json(Delivery, self.registry.store.read(path) or b"", f"{path} in {self.registry.uri}")

    def _create(self, hook: Webhook, model: str, stem: str, delivery: Delivery) -> bool:
        return self.registry.store.create(f"{_deliveries(hook, model)}/{stem}.json", to_json(delivery))

    def _event(self, model: str, key: str) -> Event | None:
        kind, _, number = key.partition("-")
        if kind == "change":
            change = ChangeLog(store=self.registry.store, name=model).entry(int(number)).change
            return _event_of_change(model, key, change)
        version = self.registry.manifest(model, int(number))
        facts = {
            "version": version.version,
            "accuracy": version.evaluation.overall.mean,
            "run_id": version.lineage.run_id,
            "parent": version.lineage.parent,
            "text": f"{version.reference} was registered: {version.evaluation.overall.mean:.1%}",
        }
        return Event(key=key, kind="registered", model=model, at=version.created_at, facts=facts)


def _event_of_change(model: str, key: str, change: Change) -> Event | None:
    kind: EventKind
    if isinstance(change, PromotionRequest):
        kind, text = "requested", f"{change.requester} requests the promotion of {model}@{change.version}"
        facts: dict[str, Any] = {"requested_by": change.requester, "previous": change.expected}
    elif isinstance(change, PromotionRefusal):
        kind, text = "refused", f"{change.refused_by} refused the promotion of {model}@{change.version}"
        facts = {"refused_by": change.refused_by}
    elif isinstance(change, AliasChange) and change.alias == PRODUCTION:
        kind = "rolled_back" if change.kind == "rollback" else "approved" if change.approved_by else "promoted"
        approved = f", approved by {change.approved_by}" if change.approved_by else ""
        text = f"{model}@{change.version} is in production{' again' if kind == 'rolled_back' else ''}{approved}"
        people = {"requested_by": change.requested_by, "approved_by": change.approved_by}
        facts = {"previous": change.previous, **{key: name for key, name in people.items() if name is not None}}
    else:
        return None
    facts |= {"version": change.version, "reason": change.reason, "by": change.by, "text": f"{text}: {change.reason}"}
    return Event(key=key, kind=kind, model=model, at=change.at, facts=facts)


def _record(attempts: int, error: str | None) -> dict[str, Any]:
    return {"delivery_id": uuid.uuid4().hex, "attempts": attempts, "error": error, "at": utc_now()}


def _order(event: Event) -> tuple[str, str, str]:
    return event.at, event.model, event.key


def _hook_path(name: str) -> str:
    return f"{_ROOT}/{name}/hook.json"


def _deliveries(hook: Webhook, model: str) -> str:
    return f"{_ROOT}/{hook.name}/deliveries/{model}"
