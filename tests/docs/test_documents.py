"""Links, commands and pins of the documentation, without running it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from pipelines.cli.main import app

from .documents import ROOT, anchors, links, markdown_files, shell_blocks

MARKDOWN = markdown_files()
REASONS = re.compile(
    r"needs (a GPU|Kubernetes|a cluster|a running daemon)|takes longer than CI allows(: covered by `make \w+`)?"
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MARKDOWN, ids=relative)
def test_every_relative_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for target in links(path):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        # The command line reference is generated when the site is built.
        if file == ROOT / "docs/reference/cli.md":
            continue
        assert file.exists(), f"{relative(path)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(file), f"{relative(path)} links to {target}: {relative(file)} has no such heading"


@pytest.mark.parametrize("path", MARKDOWN, ids=relative)
def test_blocks_that_are_not_run_state_an_allowed_reason_in_the_text(path: Path) -> None:
    for block in shell_blocks(path):
        if block.reason is not None:
            assert REASONS.fullmatch(block.reason), f"{block}: {block.reason!r} is not an allowed reason"
            assert block.reason in block.paragraph, f"{block}: a reader does not see that it {block.reason}"


@pytest.mark.parametrize("path", MARKDOWN, ids=relative)
def test_every_rlad_command_and_option_exists(path: Path) -> None:
    for block in shell_blocks(path):
        for command in block.commands():
            for words in rlad_calls(command):
                unknown = unknown_option(words)
                assert unknown is None, f"{block}: `{command}`: unknown {unknown}"


def test_the_site_lists_every_page() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(re.findall(r"[\w./-]+\.md", yaml.dump(settings["nav"], width=1000)))
    written = {str(path.relative_to(ROOT / "docs")) for path in MARKDOWN if path.is_relative_to(ROOT / "docs")}
    assert listed == written | {"reference/cli.md"}


def test_no_page_loads_anything_from_another_server() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings
    assert "http" not in re.sub(r"#.*", "", settings)


def test_pins_of_the_site_do_not_conflict_with_those_of_the_environment() -> None:
    environment, site = pins("cpu.lock"), pins("docs.lock")
    assert "mkdocs-material" in site
    assert not environment.keys() & site.keys(), "installed with --no-deps, they would replace what cpu.lock pins"


def pins(name: str) -> dict[str, str]:
    """Return a lock file's versions by normalized package name."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.removesuffix(" \\").split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}


def rlad_calls(command: str) -> list[list[str]]:
    """Return the arguments of each call of rlad in a shell command."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    calls: list[list[str]] = []
    is_call = False
    for word in lexer:
        if word == "rlad":
            calls.append([])
            is_call = True
        elif set(word) <= set("();<>|&"):
            is_call = False
        elif is_call:
            calls[-1].append(word)
    return calls


def unknown_option(words: list[str]) -> str | None:
    """Return the first command or option that rlad does not have."""
    command = typer.main.get_command(app)
    rest = words[: words.index("--")] if "--" in words else list(words)  # what follows goes to another program
    while hasattr(command, "commands") and rest:
        name = rest.pop(0)
        if name.startswith("-"):  # an option of the group, such as `rlad doctor --address auto`
            option = next((each for each in command.params if name.partition("=")[0] in each.opts), None)
            if option is None and name not in ("--help", "-h"):
                return f"option {name}"
            if option is not None and not option.is_flag and "=" not in name:
                rest.pop(0)
            continue
        if name not in command.commands:
            return f"command {name}"
        command = command.commands[name]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help",
        "-h",
    }
    return next(
        (f"option {word}" for word in rest if word.startswith("-") and word.partition("=")[0] not in options), None
    )
