"""What `rlad registry` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from pipelines.run.progress import evaluation_table
from rlad.registry.versions import AliasChange, ModelVersion, VersionDifference

_NOTHING = "-"


def versions_table(name: str, versions: Sequence[ModelVersion], aliases: Mapping[str, int]) -> Table:
    """A model's versions, the newest first."""
    table = Table(title=name, title_justify="left")
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("aliases", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    table.add_column("added (UTC)", no_wrap=True)
    for version in reversed(versions):
        overall = version.evaluation.overall
        table.add_row(
            str(version.version),
            "\n".join(alias for alias, number in aliases.items() if number == version.version),
            f"{overall.mean:.1%} ({overall.low:.0%}-{overall.high:.0%})",
            escape(version.lineage.parent or version.lineage.base_model),
            _time(version.created_at),
        )
    return table


def print_version(console: Console, version: ModelVersion, *, aliases: Sequence[str], path: Path | None) -> None:
    """One version's lineage, accuracy by group, and files."""
    lineage = version.lineage
    facts = Table(title=version.reference, title_justify="left", show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    facts.add_row("aliases", ", ".join(aliases) or _NOTHING)
    facts.add_row("added (UTC)", _time(version.created_at))
    facts.add_row("run", escape(f"{lineage.run_id} in {lineage.run_dir}"))
    facts.add_row("started from", escape(lineage.parent or lineage.base_model))
    for name, teacher in lineage.teachers.items():
        facts.add_row("teacher" if name == "teacher" else f"teacher {name}", escape(teacher))
    facts.add_row("trained on", f"{lineage.num_prompts} prompts ({lineage.prompts_fingerprint}), {lineage.steps} steps")
    facts.add_row(
        "code", f"rlad {lineage.rlad_version}{f', commit {lineage.git_commit}' if lineage.git_commit else ''}"
    )
    facts.add_row("configuration", f"SHA-256 {lineage.config_sha256}")
    facts.add_row("files", escape(f"{len(version.files)}, {decimal(version.num_bytes)}{f' in {path}' if path else ''}"))
    console.print(facts)
    console.print(evaluation_table("Accuracy", version.evaluation, group_by="group"))


def history_table(history: Sequence[AliasChange]) -> Table:
    """Moves of aliases, the oldest first."""
    table = Table(title="Aliases", title_justify="left")
    for column in ("when (UTC)", "alias", "from", "to", "who", "why"):
        table.add_column(column, overflow="fold")
    for change in history:
        target = f"{change.version}{' (rollback)' if change.kind == 'rollback' else ''}"
        table.add_row(
            _time(change.at), change.alias, _told(change.previous), target, escape(change.by), escape(change.reason)
        )
    return table


def difference_table(found: VersionDifference) -> Table:
    """Where two versions differ, a section a kind."""
    table = Table(
        title=f"{found.a} and {found.b}", title_justify="left", caption=None if _rows(found) else "They do not differ."
    )
    for column in ("", found.a, found.b):
        table.add_column(column, overflow="fold")
    for kind, rows in _rows(found).items():
        table.add_section()
        table.add_row(f"[bold]{kind}")
        for key, (a, b) in rows.items():
            table.add_row(escape(key), _told(a), _told(b))
    return table


def _rows(found: VersionDifference) -> dict[str, dict[str, tuple[Any, Any]]]:
    accuracy = {
        key: tuple(None if mean is None else f"{mean:.1%}" for mean in pair) for key, pair in found.evaluation.items()
    }
    files = {
        key: tuple(None if sha256 is None else sha256[:12] for sha256 in pair) for key, pair in found.files.items()
    }
    kinds: dict[str, Mapping[str, Any]] = {
        "accuracy": accuracy,
        "settings": found.config,
        "lineage": found.lineage,
        "files (SHA-256)": files,
    }
    return {kind: dict(rows) for kind, rows in kinds.items() if rows}


def _told(value: object) -> str:
    return _NOTHING if value is None else escape(str(value))


def _time(iso: str) -> str:
    return iso[:16].replace("T", " ")
