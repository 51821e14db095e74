"""`rlad registry`: list, promote and fetch the models in a registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rlad.registry.registry import ModelRegistry

app = typer.Typer(name="registry", help="Manage the models in a registry.", no_args_is_help=True)

RegistryUri = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="RLAD_REGISTRY",
        help="Registry: a local path, s3://bucket/prefix or gs://bucket/prefix.",
        metavar="URI",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Name of the model, for example kk-student.")]
Reference = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="Version by number or alias, for example kk-student@3.")
]
DEFAULT = "registry"


@app.callback()
def registry() -> None:
    """Manage the models in a registry: versions, lineage and aliases."""


@app.command(name="list")
def list_models(
    name: Annotated[
        str | None, typer.Argument(help="Name of the model; default: all models.", show_default=False)
    ] = None,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List the versions of each model with aliases and accuracy, newest first."""
    from pipelines.cli.tables.registry import versions_table
    from rlad.errors import ModelNotFoundError

    opened = _open(uri)
    names = opened.names()
    if name is not None and name not in names:
        raise ModelNotFoundError(
            f"no model {name!r} in the registry at {opened.uri}; models: {', '.join(names) or 'none'}"
        )
    models = {
        model: (opened.versions(model), opened.aliases(model)) for model in ([name] if name is not None else names)
    }
    if as_json:
        rows = [
            {
                "reference": version.reference,
                "aliases": [alias for alias, number in aliases.items() if number == version.version],
                "accuracy": version.evaluation.overall.mean,
                "run_id": version.lineage.run_id,
                "parent": version.lineage.parent,
                "bytes": version.num_bytes,
                "created_at": version.created_at,
            }
            for versions, aliases in models.values()
            for version in reversed(versions)
        ]
        _print_json(rows)
    elif models:
        for model, (versions, aliases) in models.items():
            Console().print(versions_table(model, versions, aliases))
    else:
        typer.echo(f"no models in the registry at {opened.uri}; add one with `rlad registry add NAME RUN`")


@app.command()
def show(
    reference: Annotated[
        str,
        typer.Argument(metavar="NAME[@VERSION]", help="Version to show; default: production, else the newest."),
    ],
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show a version: lineage, files, accuracy, and the history of the model's aliases."""
    from pipelines.cli.tables.registry import history_table, print_version
    from rlad.registry.versions import LATEST, PRODUCTION, parse_reference

    opened = _open(uri)
    name, ref = parse_reference(reference)
    aliases = opened.aliases(name)
    version = opened.get(name, ref or (PRODUCTION if PRODUCTION in aliases else LATEST))
    history, path = opened.history(name), opened.local_path(version)
    if as_json:
        fields = {
            "reference": version.reference,
            "path": str(path) if path else None,
            **asdict(version),
            "evaluation": version.evaluation.as_dict(),
        }
        _print_json({**fields, "aliases": aliases, "history": [asdict(change) for change in history]})
        return
    console = Console()
    print_version(
        console, version, aliases=[alias for alias, number in aliases.items() if number == version.version], path=path
    )
    if history:
        console.print(history_table(history))


@app.command()
def add(
    name: Name,
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    parent: Annotated[
        str | None,
        typer.Option(metavar="NAME@VERSION", help="Version that the student started from.", show_default=False),
    ] = None,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Register the model of a finished run as the next version of NAME.

    A run that is registered already is not added again.
    """
    from pipelines.run.directory import RunDirectory
    from pipelines.run.registration import register_run

    opened = _open(uri)
    version = register_run(opened, name, RunDirectory(run), parent=parent)
    if as_json:
        _print_json({"reference": version.reference, "created_at": version.created_at})
    else:
        typer.echo(
            f"{version.reference} in {opened.uri}: {version.evaluation.overall.mean:.1%} on "
            f"{version.evaluation.overall.prompts} prompts"
        )


@app.command()
def promote(
    reference: Reference,
    reason: Annotated[str, typer.Option(help="Reason, kept in the history.")] = "by hand",
    alias: Annotated[str, typer.Option(help="Alias to move.")] = "production",
    expected: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Fail unless the alias is at this version (`none`: unset); default: its current version.",
            show_default=False,
        ),
    ] = None,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Move an alias (default: production) to a version."""
    from rlad.registry.versions import LATEST, parse_reference

    opened = _open(uri)
    name, ref = parse_reference(reference)
    version = opened.get(name, ref or LATEST)
    previous = _version_or_none(expected) if expected is not None else opened.aliases(name).get(alias)
    opened.set_alias(name, alias, version.version, expected=previous, reason=reason)
    _print_move(name, alias, previous, version.version, as_json=as_json)


@app.command()
def rollback(
    name: Name,
    reason: Annotated[str, typer.Option(help="Reason, kept in the history.")] = "by hand",
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Move production back to the previous version. Repeat to go back further."""
    from rlad.registry.versions import PRODUCTION

    opened = _open(uri)
    previous = opened.aliases(name).get(PRODUCTION)
    _print_move(name, PRODUCTION, previous, opened.rollback(name, reason=reason), as_json=as_json)


@app.command()
def diff(
    a: Reference,
    b: Annotated[
        str, typer.Argument(metavar="[NAME@]VERSION", help="Version to compare with, by default of the same model.")
    ],
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show the differences between two versions: accuracy, settings, lineage and files."""
    from pipelines.cli.tables.registry import print_difference
    from rlad.registry.versions import LATEST, difference, parse_reference

    opened = _open(uri)
    name, ref = parse_reference(a)
    other_name, other_ref = parse_reference(b) if "@" in b else (name, b)
    found = difference(opened.get(name, ref or LATEST), opened.get(other_name, other_ref or LATEST))
    if as_json:
        _print_json(asdict(found))
    else:
        print_difference(Console(), found)


@app.command()
def fetch(
    reference: Reference,
    into: Annotated[Path, typer.Option(help="Directory to copy into.")] = Path("models"),
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Download a version, verify its checksums, and print its directory.

    Transformers and vLLM can load the directory.
    """
    from rlad.registry.versions import LATEST, parse_reference

    opened = _open(uri)
    name, ref = parse_reference(reference)
    version = opened.get(name, ref or LATEST)
    path = opened.fetch(name, version.version, into)
    if as_json:
        _print_json({"reference": version.reference, "path": str(path)})
    else:
        typer.echo(path)


@app.command()
def retain(
    name: Name,
    keep: Annotated[int, typer.Option(help="Number of newest versions to keep.", min=1)],
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Delete old versions of NAME.

    Versions with an alias and the target of a rollback are kept.
    """
    retired = _open(uri).retain(name, keep)
    if as_json:
        _print_json({"retired": retired})
    else:
        typer.echo(f"retired: {', '.join(f'{name}@{version}' for version in retired) or 'none'}")


def _open(uri: str) -> ModelRegistry:
    from rlad.registry.registry import ModelRegistry

    return ModelRegistry.open(uri)


def _version_or_none(text: str) -> int | None:
    if text != "none" and not text.isdecimal():
        raise typer.BadParameter(f"--expected requires a version number or `none`; got {text!r}")
    return None if text == "none" else int(text)


def _print_move(name: str, alias: str, previous: int | None, version: int, *, as_json: bool) -> None:
    if as_json:
        _print_json({"name": name, "alias": alias, "previous": previous, "version": version})
    elif previous == version:
        typer.echo(f"{alias} of {name} is already at version {version}")
    else:
        typer.echo(
            f"{alias} of {name}: {f'version {previous}' if previous is not None else 'none'} -> version {version}"
        )


def _print_json(value: Mapping[str, Any] | list[Any]) -> None:
    typer.echo(json.dumps(value))
