"""`rlad pretrain`: make a recipe's starter models, with progress and the accuracy reached; once, then they come from the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pipelines.starters.building import ensure_starters
from pipelines.starters.progress import StarterProgress
from rlad.config import RunConfig
from rlad.starters import ROLES, Role, StarterRecord, find_recipe, is_finished, parse_starter, starter_directory

_LINES_A_STAGE = 10
"""Where nobody watches live, a line each tenth of a stage."""


def pretrain(
    recipe_name: str, *, cache_dir: Path | None, force: bool, console: Console, roles: Sequence[Role] = ROLES
) -> dict[Role, Path]:
    """Make the models of a recipe that are not in the cache (all with `force`), and print what they can do.

    Args:
        cache_dir: default: `$RLAD_CACHE`, else the user's cache directory.

    Raises:
        PlanError: no such recipe, or a cache that cannot be written.
        EngineError: training failed.
    """
    recipe = find_recipe(recipe_name)
    kept = {role for role in roles if not force and is_finished(starter_directory(recipe, role, cache_dir))}
    if missing := [role for role in roles if role not in kept]:
        named = " and ".join(missing)
        console.print(
            f"making the {named} of recipe [bold]{recipe.name}[/] from generated puzzles, on CPU; it is done once",
            highlight=False,
            soft_wrap=True,
        )
    with PretrainProgress(console, title=recipe.name) as progress:
        directories = ensure_starters(recipe, cache_dir, progress.update, roles=roles, force=force)
    records = {role: StarterRecord.read(directory) for role, directory in directories.items()}
    console.print(starters_table(recipe.name, records, kept))
    for role, directory in directories.items():
        console.print(f"  starter:{recipe.name}/{role} = {directory}", highlight=False, soft_wrap=True, style="dim")
    return directories


def ensure_starters_of(config: RunConfig, console: Console) -> None:
    """Make the starter models of a run that are not in the cache yet. Prints nothing if all of them are."""
    frozen = config.frozen_models if config.needs_teacher else config.scoring_pools
    ensure_models([config.student.path, *(model.path for model in frozen.values())], console)


def ensure_models(paths: Sequence[str], console: Console) -> None:
    """The same for model paths, of which those that are no starters are left alone."""
    wanted: dict[str, list[Role]] = {}
    for recipe, role in filter(None, map(parse_starter, paths)):
        if not is_finished(starter_directory(recipe, role)):
            wanted.setdefault(recipe.name, []).append(role)
    for name, roles in wanted.items():
        pretrain(name, cache_dir=None, force=False, console=console, roles=sorted(set(roles)))


class PretrainProgress:
    """A bar a model on a terminal; elsewhere a line each tenth."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[tuple[Role, str], TaskID] = {}
        self._printed: dict[tuple[Role, str], int] = {}

    def __enter__(self) -> PretrainProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, progress: StarterProgress) -> None:
        """Show how far one model is."""
        key, detail = (progress.role, progress.stage), _detail(progress)
        if self._console.is_terminal:
            if key not in self._tasks:
                self._tasks[key] = self._live.add_task(
                    f"{progress.stage} {self._title}/{progress.role}", total=progress.total, detail=""
                )
            self._live.update(self._tasks[key], completed=progress.done, detail=detail)
            return
        part = progress.done * _LINES_A_STAGE // progress.total
        if part > self._printed.get(key, 0 if progress.done else -1):
            self._printed[key] = part
            line = f"{progress.stage} {self._title}/{progress.role}  {progress.done}/{progress.total}  {detail}"
            self._console.print(line.rstrip(), highlight=False, soft_wrap=True)


def _detail(progress: StarterProgress) -> str:
    if progress.loss is None or progress.tokens_per_s is None:
        return ""
    return f"loss {progress.loss:.3f}  {progress.tokens_per_s:,.0f} tok/s"


def starters_table(recipe_name: str, records: Mapping[Role, StarterRecord], kept: set[Role]) -> Table:
    """What the models can do on puzzles they were not trained on: a row for all puzzles and one for each number of people.

    Args:
        kept: roles that came from the cache; their figures are those stored when they were made.
    """
    table = Table(title=f"starter models {recipe_name}", title_justify="left")
    measured = next(iter(records.values())).accuracies
    many = max(measured, key=lambda setting: measured[setting].overall.samples)
    for name in ("model", "size", "people", *measured, f"pass@{measured[many].overall.samples}", "seconds"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for role, record in records.items():
        groups = record.accuracies[many].groups
        for index, group in enumerate([None, *groups]):
            rows = {
                name: summary.overall if group is None else summary.groups[group]
                for name, summary in record.accuracies.items()
            }
            figures = [f"{row.mean:.1%}" for row in rows.values()] + [f"{rows[many].pass_at_k:.1%}"]
            label = {0: role, 1: "(cached)" if role in kept else ""}.get(index, "")
            size, seconds = (
                (f"{record.num_parameters / 1e3:.0f} k", f"{record.total_seconds:.0f}") if group is None else ("", "")
            )
            table.add_row(label, size, group or "all", *figures, seconds, style="bold" if group is None else None)
        table.add_section()
    table.caption = f"{measured[many].overall.prompts} puzzles of the evaluation split, which no model is trained on"
    return table
