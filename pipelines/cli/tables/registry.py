"""Output of `rlad registry`, readable in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.run.progress import evaluation_table
from rlad.registry.versions import AliasChange, ModelVersion, VersionDifference

_MISSING = "-"
_SHOWN_SHA256 = 12
"""Digits of a SHA-256 to print. `--json` has all of them."""

_MAX_ALIAS_WIDTH = 18


def versions_table(name: str, versions: Sequence[ModelVersion], aliases: Mapping[str, int]) -> Table:
    """Return a table of a model's versions, newest first."""
    table = Table(title=name, title_justify="left")
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("aliases", no_wrap=True, overflow="ellipsis", max_width=_MAX_ALIAS_WIDTH)
    table.add_column("accuracy", justify="right", no_wrap=True)
    # Rich narrows only columns without `no_wrap`. The cells of this one are cut instead of wrapped.
    table.add_column("from")
    table.add_column("added (UTC)", no_wrap=True)
    for version in reversed(versions):
        overall = version.evaluation.overall
        table.add_row(
            str(version.version),
            "\n".join(alias for alias, number in aliases.items() if number == version.version),
            f"{overall.mean:.1%} ({overall.low:.0%}-{overall.high:.0%})",
            Text(version.lineage.parent or version.lineage.base_model, no_wrap=True, overflow="ellipsis"),
            _time(version.created_at),
        )
    return table


def print_version(console: Console, version: ModelVersion, *, aliases: Sequence[str], path: Path | None) -> None:
    """Print the lineage, files and accuracy of a version."""
    lineage = version.lineage
    commit = f", commit {lineage.git_commit}" if lineage.git_commit else ""
    facts = {
        "aliases": ", ".join(aliases) or _MISSING,
        "added (UTC)": _time(version.created_at),
        "run": lineage.run_id,
        "run directory": lineage.run_dir,
        "started from": lineage.parent or lineage.base_model,
        **{_teacher_label(name): teacher for name, teacher in lineage.teachers.items()},
        "prompts": f"{lineage.num_prompts} (fingerprint {lineage.prompts_fingerprint})",
        "steps": str(lineage.steps),
        "cost of the run": _MISSING if lineage.cost is None else str(lineage.cost),
        "code": f"rlad {lineage.rlad_version}{commit}",
        "configuration": f"SHA-256 {lineage.config_sha256[:_SHOWN_SHA256]}",
        "files": f"{len(version.files)}, {decimal(version.num_bytes)}",
    }
    if path is not None:
        facts["path"] = str(path)
    console.print(f"[bold]{escape(version.reference)}[/]")
    width = max(map(len, facts))
    for key, value in facts.items():
        # Not wrapped, so that paths stay in one piece and can be copied.
        console.print(f"  [bold]{escape(key):{width}}[/]  {escape(value)}", soft_wrap=True, highlight=False)
    console.print(evaluation_table("Accuracy", version.evaluation, group_by="group"))


def history_table(history: Sequence[AliasChange]) -> Table:
    """Return a table of alias moves, oldest first."""
    table = Table(title="Aliases", title_justify="left")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("alias", no_wrap=True, overflow="ellipsis", max_width=_MAX_ALIAS_WIDTH)
    table.add_column("change", no_wrap=True)
    table.add_column("reason")
    for change in history:
        kind = " (rollback)" if change.kind == "rollback" else ""
        versions = f"{_text(change.previous)} -> {change.version}{kind}"
        reason = f"{escape(change.reason)}\n[dim]by {escape(change.by)}[/]"
        table.add_row(_time(change.at), change.alias, versions, reason)
    return table


def print_difference(console: Console, difference: VersionDifference) -> None:
    """Print the differences between two versions, with one line per value, grouped by kind."""
    console.print(f"[bold]{escape(difference.a)} -> {escape(difference.b)}[/]")
    groups = _groups(difference)
    if not groups:
        console.print("  no differences", highlight=False)
    for kind, rows in groups.items():
        console.print(f"[bold]{kind}[/]")
        for key, (a, b) in rows.items():
            console.print(f"  {escape(key)}: {_text(a)} -> {_text(b)}", soft_wrap=True, highlight=False)


def _groups(difference: VersionDifference) -> dict[str, dict[str, tuple[Any, Any]]]:
    accuracy = {
        key: tuple(None if mean is None else f"{mean:.1%}" for mean in pair)
        for key, pair in difference.evaluation.items()
    }
    files = {
        key: tuple(None if sha256 is None else sha256[:_SHOWN_SHA256] for sha256 in pair)
        for key, pair in difference.files.items()
    }
    groups: dict[str, Mapping[str, Any]] = {
        "accuracy": accuracy,
        "settings": difference.config,
        "lineage": difference.lineage,
        "files (SHA-256)": files,
    }
    return {kind: dict(rows) for kind, rows in groups.items() if rows}


def _teacher_label(name: str) -> str:
    return "teacher" if name == "teacher" else f"teacher {name}"


def _text(value: object) -> str:
    return _MISSING if value is None else escape(str(value))


def _time(iso: str) -> str:
    return iso[:16].replace("T", " ")
