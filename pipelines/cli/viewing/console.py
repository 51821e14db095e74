"""`rlad console`: the web console."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()

PORT = 8090


@app.command()
def console(
    runs: Annotated[Path, typer.Argument(help="Directory with run directories.")] = Path("runs"),
    registry: Annotated[
        str,
        typer.Option(
            envvar="RLAD_REGISTRY",
            help="Registry: a local path, s3://bucket/prefix or gs://bucket/prefix.",
            metavar="URI",
        ),
    ] = "registry",
    store: Annotated[
        str | None,
        typer.Option(
            envvar="RLAD_SCHEDULES",
            metavar="URL",
            help="Schedule database. Default: a file in the user's data directory.",
            show_default=False,
        ),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with names, roles (view, operate, approve) and references to tokens. Default: one user "
            "with the token in RLAD_CONSOLE_TOKEN; without it, the console only shows.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Other than loopback requires users.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = PORT,
    audit: Annotated[
        Path | None,
        typer.Option(help="Audit log. Default: a file in the user's data directory.", show_default=False),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="TLS certificate (PEM). Requires --key.", show_default=False)
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).", show_default=False)] = None,
    behind_tls: Annotated[
        bool, typer.Option("--behind-tls", help="A proxy in front of the console terminates TLS.")
    ] = False,
) -> None:
    """Show runs, schedules and the registry in a browser, and steer them.

    Reads the files of the runs, so it needs no cluster. Users sign in with a
    token; their role decides which actions they may take.
    """
    import uvicorn
    from platformdirs import user_data_path

    from pipelines.console.app import create_app
    from pipelines.console.settings import LOOPBACK, ConsoleSettings, require_usable
    from pipelines.console.users import read_users
    from pipelines.schedules.store import default_url

    known = read_users(users)
    require_usable(runs, host=host, users=known, certificate=certificate, key=key)
    is_encrypted = behind_tls or certificate is not None
    settings = ConsoleSettings(
        runs=runs,
        registry=registry,
        schedules=store or default_url(),
        audit=audit or user_data_path("rlad") / "console-audit.jsonl",
        users=known,
        is_loopback=host in LOOPBACK,
        is_encrypted=is_encrypted,
    )
    application = create_app(settings)
    output = Console(stderr=True)
    shown = f"[{host}]" if ":" in host else host
    output.print(
        f"console at {'https' if certificate else 'http'}://{shown}:{port} (Ctrl-C ends it)",
        soft_wrap=True,
        highlight=False,
    )
    if not known:
        output.print("no users: the console only shows. To act, set RLAD_CONSOLE_TOKEN or give --users", soft_wrap=True)
    if host not in LOOPBACK and not is_encrypted:
        output.print(
            "[yellow]warning:[/] tokens travel unencrypted. Give --certificate and --key, or put TLS in front and give "
            "--behind-tls",
            soft_wrap=True,
        )
    uvicorn.run(
        application,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=5,
    )
