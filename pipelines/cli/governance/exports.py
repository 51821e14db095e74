"""`rlad registry card` and `export`. Registered by being imported."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.registry import (
    DEFAULT,
    AsJson,
    Reference,
    RegistryUri,
    app,
    open_registry,
    print_json,
    resolved,
)

__all__ = ["app"]  # with the commands below


@app.command()
def card(reference: Reference, uri: RegistryUri = DEFAULT) -> None:
    """Print the model card of a version: method, data, accuracy, lineage and weights, from the registry's records."""
    from pipelines.governance.model_card import model_card

    opened = open_registry(uri)
    typer.echo(model_card(opened, resolved(opened, reference)), nl=False)


@app.command()
def export(
    reference: Reference,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow server, or file:// and a directory, to copy to.", show_default=False),
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Model repository of the hub to copy to.", show_default=False),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Allow a public repository, and make a new one public.")
    ] = False,
    into: Annotated[Path, typer.Option(help="Directory for a copy of a model on an object store.")] = Path("models"),
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Copy a version to MLflow's model registry, to a repository of the hub, or both.

    A repeated export copies nothing twice, and updates tags, description, aliases and model card.
    """
    from pipelines.governance.hub_repository import export_to_hub
    from pipelines.governance.mlflow_registry import export_to_mlflow

    if mlflow is None and hub is None:
        raise typer.BadParameter("expected --mlflow URI, --hub OWNER/NAME, or both")
    opened = open_registry(uri)
    version = resolved(opened, reference)
    done = []
    if mlflow is not None:
        done.append(export_to_mlflow(opened, version, uri=mlflow, into=into))
    if hub is not None:
        done.append(export_to_hub(opened, version, repository=hub, is_public=public, into=into))
    if as_json:
        print_json([{"reference": version.reference, **asdict(each)} for each in done])
        return
    for each in done:
        typer.echo(f"{version.reference}: {each.location} ({'updated' if each.was_there else 'new'})")
        for note in each.notes:
            typer.echo(f"  {note}")
