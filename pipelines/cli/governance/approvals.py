"""`rlad registry require-approval`, `request`, `requests`, `approve` and `refuse`. Registered by being imported."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipelines.cli.registry import (
    DEFAULT,
    AsJson,
    Name,
    Reference,
    RegistryUri,
    app,
    notify_webhooks,
    open_registry,
    print_json,
    print_move,
    resolved,
)

if TYPE_CHECKING:
    from rlad.registry.governance import ModelGovernance
    from rlad.registry.versions import ModelVersion

__all__ = ["app"]  # with the commands below

Reason = Annotated[str, typer.Option(help="Reason, kept in the history.")]
By = Annotated[str, typer.Option("--by", help="Your name, kept in the history.")]


@app.command(name="require-approval")
def require_approval(
    name: Name,
    reason: Reason,
    off: Annotated[bool, typer.Option("--off", help="Let production move without approval again.")] = False,
    uri: RegistryUri = DEFAULT,
) -> None:
    """Let production of NAME move only if another person approves. Rollbacks need no approval."""
    from rlad.registry.governance import ModelGovernance

    ModelGovernance(registry=open_registry(uri), name=name).require_approval(not off, reason=reason)
    typer.echo(f"{name}: production moves {'without approval' if off else 'only if another person approves'}")


@app.command()
def request(reference: Reference, by: By, reason: Reason, uri: RegistryUri = DEFAULT, as_json: AsJson = False) -> None:
    """Request to move production to a version. Another person approves or refuses it."""
    from rlad.registry.governance import require_person
    from rlad.registry.versions import PRODUCTION

    governance, version = _opened(uri, reference)
    expected = governance.registry.aliases(version.name).get(PRODUCTION)
    governance.request(version.version, expected=expected, reason=reason, requester=require_person(by))
    if as_json:
        print_json({"reference": version.reference, "expected": expected, "requester": by})
    else:
        typer.echo(f"{version.reference} waits for approval: rlad registry approve {version.reference}")
    notify_webhooks(uri)


@app.command(name="requests")
def list_requests(uri: RegistryUri = DEFAULT, as_json: AsJson = False) -> None:
    """List the promotion requests that wait for approval."""
    from pipelines.cli.tables.registry import print_requests
    from rlad.registry.governance import ModelGovernance

    opened = open_registry(uri)
    found = {name: ModelGovernance(registry=opened, name=name).requests() for name in opened.names()}
    if as_json:
        print_json([{"name": name, **asdict(each)} for name, requests in found.items() for each in requests])
    elif any(found.values()):
        print_requests(Console(), found)
    else:
        typer.echo("no promotion waits for approval")


@app.command()
def approve(reference: Reference, by: By, reason: Reason, uri: RegistryUri = DEFAULT, as_json: AsJson = False) -> None:
    """Approve a requested promotion: production moves to the version.

    The requester cannot approve.
    """
    from rlad.registry.versions import PRODUCTION

    governance, version = _opened(uri, reference)
    previous = governance.registry.aliases(version.name).get(PRODUCTION)
    governance.approve(version.version, approver=by, reason=reason)
    print_move(version.name, PRODUCTION, previous, version.version, as_json=as_json)
    notify_webhooks(uri)


@app.command()
def refuse(reference: Reference, by: By, reason: Reason, uri: RegistryUri = DEFAULT, as_json: AsJson = False) -> None:
    """Refuse a requested promotion, or withdraw your own request."""
    governance, version = _opened(uri, reference)
    governance.refuse(version.version, by=by, reason=reason)
    if as_json:
        print_json({"reference": version.reference, "refused_by": by})
    else:
        typer.echo(f"{version.reference} is not promoted")
    notify_webhooks(uri)


def _opened(uri: str, reference: str) -> tuple[ModelGovernance, ModelVersion]:
    from rlad.registry.governance import ModelGovernance

    opened = open_registry(uri)
    version = resolved(opened, reference)
    return ModelGovernance(registry=opened, name=version.name), version
