"""Shell blocks, links and headings of the Markdown documents."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->")
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (?P<title>.+?)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellBlock:
    """A fenced `sh` block.

    Attributes:
        line: Number of the block's first line.
        text: Commands as written.
        reason: Reason in the comment directly above the fence why the block is not run; None: it is run.
        paragraph: Prose directly above and below the block.
    """

    document: str
    line: int
    text: str
    reason: str | None
    paragraph: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of the block, continuation lines joined, comments kept."""
        joined = self.text.replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def markdown_files() -> list[Path]:
    """Return all Markdown files that git knows, as absolute paths."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in sorted(listed.stdout.split()) if (ROOT / name).is_file()]


def shell_blocks(path: Path) -> list[ShellBlock]:
    """Return the `sh` blocks of a document, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    blocks: list[ShellBlock] = []
    start: int | None = None
    for number, line in enumerate(lines):
        if start is None and line.strip() == "```sh":
            start = number
        elif start is not None and line.strip() == "```":
            note = _NOT_RUN.fullmatch(lines[start - 1].strip()) if start else None
            before = _paragraph(lines, start - (2 if note else 1), -1)
            blocks.append(
                ShellBlock(
                    document=str(path.relative_to(ROOT)),
                    line=start + 2,
                    text="\n".join(lines[start + 1 : number]) + "\n",
                    reason=note["reason"] if note else None,
                    paragraph=f"{before} {_paragraph(lines, number + 1, 1)}",
                )
            )
            start = None
    return blocks


def links(path: Path) -> list[str]:
    """Return the targets of a document's links and images, outside of code."""
    return [match["target"] for match in _LINK.finditer(_without_code(path))]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and mkdocs spell them."""
    titles = (
        match["title"] for line in _without_code(path, inline=False).splitlines() if (match := _HEADING.match(line))
    )
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()) for title in titles}


def _paragraph(lines: list[str], place: int, direction: int) -> str:
    while 0 <= place < len(lines) and not lines[place].strip():
        place += direction
    found: list[str] = []
    while 0 <= place < len(lines) and lines[place].strip() and not lines[place].startswith("```"):
        found.append(lines[place])
        place += direction
    return " ".join(found[::direction])


def _without_code(path: Path, *, inline: bool = True) -> str:
    text = re.sub(r"^([ \t]*)```.*?^\1```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text) if inline else text
