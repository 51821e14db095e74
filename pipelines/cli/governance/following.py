"""`rlad registry follow`: a command for each version in production. Registered by being imported."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.registry import DEFAULT, RegistryUri, app, open_registry

__all__ = ["app"]  # with the command below


@app.command()
def follow(
    reference: Annotated[str, typer.Argument(metavar="NAME[@ALIAS]", help="Alias to follow; default: production.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="Program and arguments.")],
    every_s: Annotated[
        float, typer.Option("--every", metavar="SECONDS", help="Time between looks at the registry.", min=0.1)
    ] = 30.0,
    applied: Annotated[
        int | None,
        typer.Option(
            metavar="VERSION", help="Version that is in place already, for which no command runs.", show_default=False
        ),
    ] = None,
    uri: RegistryUri = DEFAULT,
) -> None:
    """Run a command for the version of an alias, and again whenever the alias moves, until stopped.

    The command has RLAD_MODEL, RLAD_VERSION and RLAD_REFERENCE. One that fails is repeated with growing pauses.
    """
    import logging
    import threading

    from pipelines.governance.following import AliasFollower
    from pipelines.schedules.signals import run_until_signalled
    from rlad.registry.versions import PRODUCTION, parse_reference

    name, alias = parse_reference(reference)
    logging.getLogger("pipelines").setLevel(logging.INFO)
    follower = AliasFollower(
        lambda: open_registry(uri),
        name=name,
        alias=alias or PRODUCTION,
        command=command,
        applied=applied,
        every_s=every_s,
    )
    stop = threading.Event()
    run_until_signalled(lambda: follower.follow(stop), stop)
