"""What `rlad registry` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from rlad.model_version import AliasChange, ModelVersion, VersionDifference

_NOTHING = "-"


def versions_table(name: str, versions: Sequence[ModelVersion], aliases: Mapping[str, int]) -> Table:
    """A model's versions, the newest first."""
    table = Table(title=name, title_justify="left")
    table.add_column("version", justify="right")
    table.add_column("aliases")
    table.add_column("accuracy (95%)", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("from")
    table.add_column("run")
    table.add_column("size", justify="right")
    table.add_column("added (UTC)")
    for version in reversed(versions):
        table.add_row(
            str(version.version),
            ", ".join(alias for alias, number in aliases.items() if number == version.version),
            _accuracy(version),
            str(version.lineage.steps),
            version.lineage.parent or version.lineage.base_model,
            version.lineage.run_id,
            decimal(version.num_bytes),
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
    facts.add_row("run", f"{lineage.run_id} in {lineage.run_dir}")
    facts.add_row("started from", lineage.parent or lineage.base_model)
    for name, teacher in lineage.teachers.items():
        facts.add_row("teacher" if name == "teacher" else f"teacher {name}", teacher)
    facts.add_row("trained on", f"{lineage.num_prompts} prompts ({lineage.prompts_fingerprint}), {lineage.steps} steps")
    facts.add_row("code", f"rlad {lineage.rlad_version}{f', commit {lineage.git_commit}' if lineage.git_commit else ''}")
    facts.add_row("configuration", f"SHA-256 {lineage.config_sha256}")
    facts.add_row("files", f"{len(version.files)}, {decimal(version.num_bytes)}{f' in {path}' if path else ''}")
    console.print(facts)
    accuracy = Table(title="Accuracy", title_justify="left")
    for column in ("", "prompts", f"mean@{version.evaluation.overall.samples}", "95% interval"):
        accuracy.add_column(column, justify="right" if column else "left")
    for group, row in [*version.evaluation.groups.items(), ("all", version.evaluation.overall)]:
        accuracy.add_row(group, str(row.prompts), f"{row.mean:.1%}", f"{row.low:.1%} to {row.high:.1%}")
    console.print(accuracy)


def history_table(history: Sequence[AliasChange]) -> Table:
    """Moves of aliases, the oldest first."""
    table = Table(title="Aliases", title_justify="left")
    for column in ("when (UTC)", "alias", "from", "to", "who", "why"):
        table.add_column(column, overflow="fold")
    for change in history:
        target = f"{change.version}{' (rollback)' if change.kind == 'rollback' else ''}"
        table.add_row(_time(change.at), change.alias, _told(change.previous), target, change.by, change.reason)
    return table


def difference_table(found: VersionDifference) -> Table:
    """Where two versions differ, a section a kind."""
    table = Table(title=f"{found.a} and {found.b}", title_justify="left", caption=None if _rows(found) else "They do not differ.")
    for column in ("", found.a, found.b):
        table.add_column(column, overflow="fold")
    for kind, rows in _rows(found).items():
        table.add_section()
        table.add_row(f"[bold]{kind}")
        for key, (a, b) in rows.items():
            table.add_row(key, _told(a), _told(b))
    return table


def _rows(found: VersionDifference) -> dict[str, dict[str, tuple[Any, Any]]]:
    accuracy = {key: tuple(None if mean is None else f"{mean:.1%}" for mean in pair) for key, pair in found.evaluation.items()}
    files = {key: tuple(None if sha256 is None else sha256[:12] for sha256 in pair) for key, pair in found.files.items()}
    kinds: dict[str, Mapping[str, Any]] = {"accuracy": accuracy, "settings": found.config, "lineage": found.lineage, "files (SHA-256)": files}
    return {kind: dict(rows) for kind, rows in kinds.items() if rows}


def _accuracy(version: ModelVersion) -> str:
    overall = version.evaluation.overall
    return f"{overall.mean:.1%} ({overall.low:.0%}-{overall.high:.0%})"


def _told(value: object) -> str:
    return _NOTHING if value is None else str(value)


def _time(iso: str) -> str:
    return iso[:19].replace("T", " ")
