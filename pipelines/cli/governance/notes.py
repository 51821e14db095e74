"""`rlad registry tag` and `describe`. Registered by being imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from pipelines.cli.registry import DEFAULT, AsJson, Reference, RegistryUri, app, open_registry, print_json, resolved

__all__ = ["app"]  # with the commands below


@app.command()
def tag(
    reference: Reference,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Tags to set.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Tag to remove; repeatable.", show_default=False)
    ] = None,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Set or remove tags of a version. Other tags stay."""
    if not tags and not remove:
        raise typer.BadParameter("expected KEY=VALUE, or --remove KEY")
    _annotate(uri, reference, tags=_parsed(tags or []), remove=remove or (), as_json=as_json)


@app.command()
def describe(
    reference: Reference,
    text: Annotated[str, typer.Argument(help="Description; an empty one removes it.")],
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Set the description of a version."""
    _annotate(uri, reference, description=text, as_json=as_json)


def _annotate(
    uri: str,
    reference: str,
    *,
    as_json: bool,
    tags: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
    description: str | None = None,
) -> None:
    from rlad.registry.governance import ModelGovernance

    opened = open_registry(uri)
    version = resolved(opened, reference)
    notes = ModelGovernance(registry=opened, name=version.name).annotate(
        version.version, tags=tags, remove=remove, description=description
    )
    if as_json:
        print_json({"reference": version.reference, "tags": notes.tags, "description": notes.description})
    else:
        shown = ", ".join(f"{key}={value}" for key, value in notes.tags.items()) or "no tags"
        typer.echo(f"{version.reference}: {shown}{f'; {notes.description}' if notes.description else ''}")


def _parsed(texts: list[str]) -> dict[str, str]:
    parts = [text.partition("=") for text in texts]
    if wrong := [text for text, (key, separator, _) in zip(texts, parts, strict=True) if not key or not separator]:
        raise typer.BadParameter(f"expected KEY=VALUE; got {wrong[0]!r}")
    return {key: value for key, _, value in parts}
