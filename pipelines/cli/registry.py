"""`rlad registry`: the models that runs have made, and which of them is in production."""

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

app = typer.Typer(
    name="registry", help="Models that runs have made: versions, lineage, promotion.", no_args_is_help=True
)

RegistryUri = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="RLAD_REGISTRY",
        help="A local path, s3://bucket/prefix or gs://bucket/prefix.",
        metavar="URI",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="A model's name, for example kk-student.")]
Reference = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="A version by number or alias, for example kk-student@3.")
]
DEFAULT = "registry"


@app.callback()
def registry() -> None:
    """Models that runs have made: versions, lineage, promotion."""


@app.command(name="list")
def list_models(
    name: Annotated[str | None, typer.Argument(help="Only this model. [default: all]", show_default=False)] = None,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List versions with their accuracy, the newest first, and where the aliases are."""
    from pipelines.cli.registry_tables import versions_table
    from rlad.errors import ModelNotFoundError

    opened = _open(uri)
    names = opened.names()
    if name is not None and name not in names:
        raise ModelNotFoundError(
            f"no model {name!r} in the registry at {opened.uri}; there are {', '.join(names) or 'none'}"
        )
    models = {each: (opened.versions(each), opened.aliases(each)) for each in ([name] if name is not None else names)}
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
        for each, (versions, aliases) in models.items():
            Console().print(versions_table(each, versions, aliases))
    else:
        typer.echo(f"no models in the registry at {opened.uri}: `rlad registry add NAME RUN` adds a finished run's")


@app.command()
def show(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]", help="A model or one of its versions; production, or else the newest."
        ),
    ],
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show one version: where it comes from, what it reaches, its files, and how the aliases moved."""
    from pipelines.cli.registry_tables import history_table, print_version
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
    run: Annotated[Path, typer.Argument(help="The directory of a finished run.")],
    parent: Annotated[
        str | None,
        typer.Option(metavar="NAME@VERSION", help="The version that its student started from.", show_default=False),
    ] = None,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Add RUN's export as the next version of NAME; a run that is there already is not added again."""
    from pipelines.run.directory import RunDirectory
    from pipelines.run.registration import register_run

    opened = _open(uri)
    version = register_run(opened, name, RunDirectory(run), parent=parent)
    if as_json:
        _print_json({"reference": version.reference, "created_at": version.created_at})
    else:
        typer.echo(
            f"{version.reference} in {opened.uri}: {version.evaluation.overall.mean:.1%} on {version.evaluation.overall.prompts} prompts"
        )


@app.command()
def promote(
    reference: Reference,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "by hand",
    alias: Annotated[str, typer.Option(help="Which alias to move.")] = "production",
    expected: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Only if the alias is at this version (none: at no version). [default: where it is now]",
            show_default=False,
        ),
    ] = None,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a version the one in production."""
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
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "by hand",
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Put production back to the version before; again, to the one before that."""
    from rlad.registry.versions import PRODUCTION

    opened = _open(uri)
    previous = opened.aliases(name).get(PRODUCTION)
    _print_move(name, PRODUCTION, previous, opened.rollback(name, reason=reason), as_json=as_json)


@app.command()
def diff(
    a: Reference,
    b: Annotated[
        str, typer.Argument(metavar="[NAME@]VERSION", help="Another version, of the same model if no name is given.")
    ],
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show where two versions differ: accuracy, settings, lineage, files."""
    from pipelines.cli.registry_tables import difference_table
    from rlad.registry.versions import LATEST, difference, parse_reference

    opened = _open(uri)
    name, ref = parse_reference(a)
    other_name, other_ref = parse_reference(b) if "@" in b else (name, b)
    found = difference(opened.get(name, ref or LATEST), opened.get(other_name, other_ref or LATEST))
    if as_json:
        _print_json(asdict(found))
    else:
        Console().print(difference_table(found))


@app.command()
def fetch(
    reference: Reference,
    into: Annotated[Path, typer.Option(help="Folder for the copy.")] = Path("models"),
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Copy a version to this machine, verify its checksums, and print its directory, which transformers and vLLM load as it is."""
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
    keep: Annotated[int, typer.Option(help="How many of the newest versions stay.", min=1)],
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Delete old versions of NAME; never one that an alias leads to, or that a rollback would."""
    given_up = _open(uri).retain(name, keep)
    if as_json:
        _print_json({"retired": given_up})
    else:
        typer.echo(f"retired: {', '.join(f'{name}@{version}' for version in given_up) or 'none'}")


def _open(uri: str) -> ModelRegistry:
    from rlad.registry.registry import ModelRegistry

    return ModelRegistry.open(uri)


def _version_or_none(text: str) -> int | None:
    if text != "none" and not text.isdecimal():
        raise typer.BadParameter(f"--expected takes a version's number or none, got {text!r}")
    return None if text == "none" else int(text)


def _print_move(name: str, alias: str, previous: int | None, version: int, *, as_json: bool) -> None:
    if as_json:
        _print_json({"name": name, "alias": alias, "previous": previous, "version": version})
    elif previous == version:
        typer.echo(f"{alias} of {name} is at version {version} already")
    else:
        typer.echo(
            f"{alias} of {name}: {f'version {previous}' if previous is not None else 'none'} -> version {version}"
        )


def _print_json(value: Mapping[str, Any] | list[Any]) -> None:
    typer.echo(json.dumps(value))
