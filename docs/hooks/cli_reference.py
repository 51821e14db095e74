"""Generate the CLI reference from the `rlad` command itself while the site is built."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `reference/cli.md`, written by Typer from the commands, their arguments and their options.

    Hidden commands are left out.
    """
    import typer
    from typer.cli import get_docs_for_click

    from pipelines.cli.main import app

    command = typer.main.get_command(app)
    command.commands = {name: each for name, each in command.commands.items() if not each.hidden}
    for each in command.commands.values():
        each.short_help = (each.help or "").split("\n\n")[0]  # Typer would cut it at 45 characters
    context = typer.Context(command, info_name="rlad")
    text = get_docs_for_click(obj=command, ctx=context, name="rlad", title="Command line")
    files.append(File.generated(config, "reference/cli.md", content=text))
    return files
