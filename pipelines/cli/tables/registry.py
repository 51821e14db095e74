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

from pipelines.cli.entries import Entry, print_entries
from pipelines.run.progress import evaluation_table
from rlad.registry.changes import (
    AliasChange,
    ApprovalRule,
    Change,
    PromotionRefusal,
    PromotionRequest,
    VersionNotes,
)
from rlad.registry.versions import ModelVersion, VersionDifference

_MISSING = "-"
_SHOWN_SHA256 = 12
"""Digits of a SHA-256 to print. `--json` has all of them."""

_MAX_ALIAS_WIDTH = 18


def versions_table(
    name: str,
    versions: Sequence[ModelVersion],
    aliases: Mapping[str, int],
    tags: Mapping[int, Mapping[str, str]] | None = None,
) -> Table:
    """Return a table of a model's versions, newest first. A version's tags, if it has any, are in a row below it."""
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
        for key, value in (tags or {}).get(version.version, {}).items():
            table.add_row("", "", "", Text(f"{key}={value}", no_wrap=True, overflow="ellipsis"), "")
    return table


def print_version(
    console: Console,
    version: ModelVersion,
    *,
    aliases: Sequence[str],
    path: Path | None,
    notes: VersionNotes | None = None,
    requests: Sequence[PromotionRequest] = (),
) -> None:
    """Print the notes, lineage, files and accuracy of a version, and its open promotion requests."""
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
    if notes is not None and notes.tags:
        facts["tags"] = ", ".join(f"{key}={value}" for key, value in notes.tags.items())
    if notes is not None and notes.description:
        facts["description"] = notes.description
    if requests:
        facts["waits for approval"] = "; ".join(f"requested by {each.requester}: {each.reason}" for each in requests)
    console.print(f"[bold]{escape(version.reference)}[/]")
    width = max(map(len, facts))
    for key, value in facts.items():
        # Not wrapped, so that paths stay in one piece and can be copied.
        console.print(f"  [bold]{escape(key):{width}}[/]  {escape(value)}", soft_wrap=True, highlight=False)
    console.print(evaluation_table("Accuracy", version.evaluation, group_by="group"))


def history_table(changes: Sequence[Change]) -> Table:
    """Return a table of a model's changes, oldest first."""
    table = Table(title="History", title_justify="left")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("what", no_wrap=True, overflow="ellipsis", max_width=_MAX_ALIAS_WIDTH)
    table.add_column("change", no_wrap=True)
    table.add_column("reason")
    for change in changes:
        what, effect, reason, person = _described(change)
        by = f"{person} ({change.by})" if person else change.by
        table.add_row(_time(change.at), what, effect, f"{escape(reason)}\n[dim]by {escape(by)}[/]".lstrip())
    return table


def print_requests(console: Console, requests: Mapping[str, Sequence[PromotionRequest]]) -> None:
    """Print the open promotion requests by model."""
    entries = [
        Entry(
            cells=(f"{name}@{each.version}", _text(each.expected), each.requester, _time(each.at)), details=each.reason
        )
        for name, own in requests.items()
        for each in own
    ]
    print_entries(console, ("version", "production", "requested by", "when (UTC)"), entries)


def _described(change: Change) -> tuple[str, str, str, str | None]:
    """Return the subject of a change, its effect, its reason, and the person who made it if one is named."""
    if isinstance(change, AliasChange):
        kind = " (rollback)" if change.kind == "rollback" else ""
        approved = f"; requested by {change.requested_by}" if change.requested_by else ""
        effect = f"{_text(change.previous)} -> {change.version}{kind}"
        return change.alias, effect, f"{change.reason}{approved}", change.approved_by
    if isinstance(change, PromotionRequest):
        return "request", f"{_text(change.expected)} -> {change.version}", change.reason, change.requester
    if isinstance(change, PromotionRefusal):
        return "refusal", str(change.version), change.reason, change.refused_by
    if isinstance(change, ApprovalRule):
        return "approval", "required" if change.is_required else "not required", change.reason, None
    if isinstance(change, VersionNotes):
        tags = ", ".join(f"{key}={value}" for key, value in change.tags.items())
        return "notes", str(change.version), "; ".join(filter(None, (tags, change.description))), None
    return "retired", f"{len(change.versions)} versions", ", ".join(map(str, change.versions)), None


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
