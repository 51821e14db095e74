"""`rlad registry card`. Registered by being imported."""

from __future__ import annotations

import typer

from pipelines.cli.registry import DEFAULT, Reference, RegistryUri, app, open_registry, resolved

__all__ = ["app"]  # with the command below


@app.command()
def card(reference: Reference, uri: RegistryUri = DEFAULT) -> None:
    """Print the model card of a version: method, data, accuracy, lineage and weights, from the registry's records."""
    from pipelines.governance.model_card import model_card

    opened = open_registry(uri)
    typer.echo(model_card(opened, resolved(opened, reference)), nl=False)
