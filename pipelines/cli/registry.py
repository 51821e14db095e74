"""`rlad registry`: list, promote and fetch the models in a registry."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rlad.registry.registry import ModelRegistry
    from rlad.registry.versions import ModelVersion

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
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            metavar="KEY[=VALUE]",
            help="List only versions with this tag; repeatable, all must match.",
            show_default=False,
        ),
    ] = None,
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List the versions of each model with aliases, accuracy and tags, newest first."""
    from pipelines.cli.tables.registry import versions_table
    from rlad.errors import ModelNotFoundError
    from rlad.registry.governance import ModelGovernance

    opened = open_registry(uri)
    names = opened.names()
    if name is not None and name not in names:
        raise ModelNotFoundError(
            f"no model {name!r} in the registry at {opened.uri}; models: {', '.join(names) or 'none'}"
        )
    chosen = [name] if name is not None else names
    notes = {model: ModelGovernance(registry=opened, name=model).notes() for model in chosen}
    tags_of = {model: {version: found.tags for version, found in notes[model].items()} for model in chosen}
    models = {
        model: (
            [each for each in opened.versions(model) if _has_tags(tags_of[model].get(each.version, {}), tags or [])],
            opened.aliases(model),
        )
        for model in chosen
    }
    if tags:
        models = {model: found for model, found in models.items() if found[0]}
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
                "tags": tags_of[version.name].get(version.version, {}),
            }
            for versions, aliases in models.values()
            for version in reversed(versions)
        ]
        print_json(rows)
    elif models:
        for model, (versions, aliases) in models.items():
            Console().print(versions_table(model, versions, aliases, tags_of[model]))
    elif tags:
        typer.echo(f"no version in the registry at {opened.uri} has the tags {', '.join(tags)}")
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
    """Show a version: notes, lineage, files, accuracy, and the history of the model."""
    from pipelines.cli.tables.registry import history_table, print_version
    from rlad.registry.changes import AliasChange
    from rlad.registry.governance import ModelGovernance
    from rlad.registry.versions import LATEST, PRODUCTION, parse_reference

    opened = open_registry(uri)
    name, ref = parse_reference(reference)
    aliases = opened.aliases(name)
    version = opened.get(name, ref or (PRODUCTION if PRODUCTION in aliases else LATEST))
    governance, path = ModelGovernance(registry=opened, name=name), opened.local_path(version)
    changes, notes = governance.changes(), governance.notes().get(version.version)
    if as_json:
        fields = {
            "reference": version.reference,
            "path": str(path) if path else None,
            **asdict(version),
            "evaluation": version.evaluation.as_dict(),
        }
        print_json(
            {
                **fields,
                "tags": notes.tags if notes is not None else {},
                "description": notes.description if notes is not None else "",
                "aliases": aliases,
                "is_approval_required": governance.is_approval_required,
                "requests": [asdict(each) for each in governance.requests()],
                "history": [asdict(change) for change in changes if isinstance(change, AliasChange)],
                "changes": [asdict(change) for change in changes],
            }
        )
        return
    console = Console()
    print_version(
        console,
        version,
        aliases=[alias for alias, number in aliases.items() if number == version.version],
        path=path,
        notes=notes,
        requests=[each for each in governance.requests() if each.version == version.version],
    )
    if changes:
        console.print(history_table(changes))


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

    opened = open_registry(uri)
    version = register_run(opened, name, RunDirectory(run), parent=parent)
    if as_json:
        print_json({"reference": version.reference, "created_at": version.created_at})
    else:
        typer.echo(
            f"{version.reference} in {opened.uri}: {version.evaluation.overall.mean:.1%} on "
            f"{version.evaluation.overall.prompts} prompts"
        )
    notify_webhooks(uri)


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
    opened = open_registry(uri)
    version = resolved(opened, reference)
    previous = _version_or_none(expected) if expected is not None else opened.aliases(version.name).get(alias)
    opened.set_alias(version.name, alias, version.version, expected=previous, reason=reason)
    print_move(version.name, alias, previous, version.version, as_json=as_json)
    notify_webhooks(uri)


@app.command()
def rollback(
    name: Name,
    reason: Annotated[str, typer.Option(help="Reason, kept in the history.")] = "by hand",
    uri: RegistryUri = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Move production back to the previous version. Repeat to go back further."""
    from rlad.registry.versions import PRODUCTION

    opened = open_registry(uri)
    previous = opened.aliases(name).get(PRODUCTION)
    print_move(name, PRODUCTION, previous, opened.rollback(name, reason=reason), as_json=as_json)
    notify_webhooks(uri)


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

    opened = open_registry(uri)
    name, ref = parse_reference(a)
    other_name, other_ref = parse_reference(b) if "@" in b else (name, b)
    found = difference(opened.get(name, ref or LATEST), opened.get(other_name, other_ref or LATEST))
    if as_json:
        print_json(asdict(found))
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
    opened = open_registry(uri)
    version = resolved(opened, reference)
    path = opened.fetch(version.name, version.version, into)
    if as_json:
        print_json({"reference": version.reference, "path": str(path)})
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
    retired = open_registry(uri).retain(name, keep)
    if as_json:
        print_json({"retired": retired})
    else:
        typer.echo(f"retired: {', '.join(f'{name}@{version}' for version in retired) or 'none'}")


def open_registry(uri: str) -> ModelRegistry:
    """Open the registry at a URI."""
    from rlad.registry.registry import ModelRegistry

    return ModelRegistry.open(uri)


def _has_tags(tags: Mapping[str, str], wanted: Sequence[str]) -> bool:
    pairs = [text.partition("=") for text in wanted]
    return all(key in tags and (not separator or tags[key] == value) for key, separator, value in pairs)


def _version_or_none(text: str) -> int | None:
    if text != "none" and not text.isdecimal():
        raise typer.BadParameter(f"--expected requires a version number or `none`; got {text!r}")
    return None if text == "none" else int(text)


def notify_webhooks(uri: str) -> None:
    """Send the events of a change that is complete and printed to the webhooks of the registry."""
    from pipelines.webhooks.delivery import deliver_quietly

    sys.stdout.flush()
    deliver_quietly(uri)


def resolved(opened: ModelRegistry, reference: str) -> ModelVersion:
    """Return the version that a reference of the command line names; the newest one for a name alone."""
    from rlad.registry.versions import LATEST, parse_reference

    name, ref = parse_reference(reference)
    return opened.get(name, ref or LATEST)


def print_move(name: str, alias: str, previous: int | None, version: int, *, as_json: bool) -> None:
    """Print the move of an alias."""
    if as_json:
        print_json({"name": name, "alias": alias, "previous": previous, "version": version})
    elif previous == version:
        typer.echo(f"{alias} of {name} is already at version {version}")
    else:
        typer.echo(
            f"{alias} of {name}: {f'version {previous}' if previous is not None else 'none'} -> version {version}"
        )


def print_json(value: Mapping[str, Any] | list[Any]) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value))
