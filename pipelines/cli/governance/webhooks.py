"""`rlad registry webhook`: signed notices of what happens to the models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.cli.entries import Entry, print_entries
from pipelines.cli.registry import DEFAULT, AsJson, RegistryUri, app, open_registry, print_json

webhook_app = typer.Typer(
    name="webhook", help="Send signed notices of registrations, promotions and approvals.", no_args_is_help=True
)
app.add_typer(webhook_app)

Name = Annotated[str, typer.Argument(help="Name of the webhook.")]


@webhook_app.command()
def add(
    name: Name,
    url_env: Annotated[str, typer.Option(help="Environment variable with the URL.")],
    secret_env: Annotated[
        str | None, typer.Option(help="Environment variable with the secret of the signature.", show_default=False)
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="File with the secret, readable by its owner only.", show_default=False)
    ] = None,
    events: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            help="Send this event only; repeatable. Events: registered, requested, approved, refused, promoted, "
            "rolled_back.",
            show_default=False,
        ),
    ] = None,
    uri: RegistryUri = DEFAULT,
) -> None:
    """Add a webhook, which is sent the events of all models from now on.

    The registry stores the names of the variables, not their values.
    """
    from rlad.registry.webhooks import EVENT_KINDS, Webhooks

    file = str(secret_file.expanduser().absolute()) if secret_file is not None else None
    hook = Webhooks(registry=open_registry(uri)).add(
        name, url_env=url_env, secret_env=secret_env, secret_file=file, events=events or EVENT_KINDS
    )
    typer.echo(f"webhook {hook.name} is sent {', '.join(hook.events)}")


@webhook_app.command(name="list")
def list_webhooks(uri: RegistryUri = DEFAULT, as_json: AsJson = False) -> None:
    """List the webhooks, with the numbers of events that wait and that failed."""
    from rlad.registry.webhooks import Webhooks

    webhooks = Webhooks(registry=open_registry(uri))
    rows = [(hook, *webhooks.undelivered(hook)) for hook in webhooks.hooks()]
    if as_json:
        print_json([{**asdict(hook), "waiting": len(new), "failed": len(failed)} for hook, new, failed in rows])
    elif rows:
        entries = [
            Entry(cells=(hook.name, hook.url_env, str(len(new)), str(len(failed))), details=", ".join(hook.events))
            for hook, new, failed in rows
        ]
        print_entries(Console(), ("webhook", "URL", "waiting", "failed"), entries)
    else:
        typer.echo("no webhooks; add one with `rlad registry webhook add NAME --url-env VARIABLE`")


@webhook_app.command()
def failed(uri: RegistryUri = DEFAULT, as_json: AsJson = False) -> None:
    """List the events whose delivery failed (dead letters)."""
    from rlad.registry.webhooks import Webhooks

    webhooks = Webhooks(registry=open_registry(uri))
    found = [(hook, event, last) for hook in webhooks.hooks() for event, last in webhooks.undelivered(hook)[1]]
    if as_json:
        print_json(
            [
                {"webhook": hook.name, "id": event.id, **asdict(event), "attempts": last.attempts, "error": last.error}
                for hook, event, last in found
            ]
        )
    elif found:
        entries = [
            Entry(cells=(hook.name, event.kind, event.id), details=f"{last.error} ({last.at[:19]})")
            for hook, event, last in found
        ]
        print_entries(Console(), ("webhook", "event", "id"), entries)
    else:
        typer.echo("no delivery has failed")


@webhook_app.command()
def send(
    again: Annotated[bool, typer.Option("--again", help="Send failed events again, too.")] = False,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Send the events that wait, for example those of processes without the secret.

    Exit status 1: a delivery failed.
    """
    from pipelines.webhooks.delivery import deliver

    reports = deliver(open_registry(uri), again=again)
    if as_json:
        print_json([asdict(report) for report in reports])
    for report in [] if as_json else reports:
        problem = f"; {report.error}" if report.error is not None else ""
        typer.echo(f"{report.webhook}: {report.delivered} delivered, {report.waiting} waiting{problem}")
    if any(report.error is not None for report in reports):
        raise typer.Exit(1)


@webhook_app.command()
def remove(name: Name, uri: RegistryUri = DEFAULT) -> None:
    """Remove a webhook with the records of its deliveries."""
    from rlad.registry.webhooks import Webhooks

    Webhooks(registry=open_registry(uri)).remove(name)
    typer.echo(f"webhook {name} is removed")
