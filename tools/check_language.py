"""Check of the repository's language and layout, run by `make lint`: `python -m tools.check_language [PATH ...]`.

Without arguments every file that git tracks, or would track, is checked. Findings are printed one per line as
`path:line: message (write instead: ...)`; the exit status is 1 if there are any. The rules are in
`language_rules.toml`.
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tools.markdown_width import long_prose_lines
from tools.passages import Passage, passages_of

RULES_FILE = Path(__file__).with_name("language_rules.toml")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """A place that breaks a rule."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A forbidden wording.

    Attributes:
        source: the pattern as the rules file spells it.
        pattern: its compiled form.
        write: the advice that is printed with a finding.
    """

    source: str
    pattern: re.Pattern[str]
    write: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """Files in which a rule does not hold.

    Attributes:
        path: glob of the files.
        pattern: pattern of the rule, as the rules file spells it; None for all rules.
        reason: why the files are exempt.
    """

    path: str
    pattern: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The content of `language_rules.toml`."""

    phrases: Sequence[Rule]
    starts: Sequence[Rule]
    names: Sequence[Rule]
    exemptions: Sequence[Exemption]
    max_code_lines: int
    max_modules: int
    max_prose_columns: int

    def are_waived(self, path: str, rule: Rule | None = None) -> bool:
        """Return whether a file may break a rule, or every rule on wording where none is named."""
        return any(
            fnmatch.fnmatch(path, exemption.path)
            and (exemption.pattern is None or (rule is not None and exemption.pattern == rule.source))
            for exemption in self.exemptions
        )


def load_rules(path: Path = RULES_FILE) -> Rules:
    """Read the rules file."""
    content = tomllib.loads(path.read_text())

    def rules_of(key: str, template: str, flags: re.RegexFlag) -> list[Rule]:
        return [
            Rule(
                source=entry["pattern"],
                pattern=re.compile(template.format(entry["pattern"].replace(" ", r"\s+")), flags),
                write=entry["write"],
            )
            for entry in content.get(key, [])
        ]

    return Rules(
        phrases=rules_of("phrase", r"\b(?:{})\b", re.IGNORECASE),
        starts=rules_of("start", r"\s*(?:{})\b", re.NOFLAG),
        names=rules_of("name", r"(?:{})", re.NOFLAG),
        exemptions=[
            Exemption(path=entry["path"], pattern=entry.get("pattern"), reason=entry["reason"])
            for entry in content.get("exempt", [])
        ],
        **content["layout"],
    )


def check_file(path: str, source: str, rules: Rules) -> Iterator[Finding]:
    """Yield the findings in one file.

    Args:
        path: relative to the root of the repository, with forward slashes.
        source: content of the file.
    """
    name = PurePosixPath(path)
    if name.suffix == ".py" and (lines := source.count("\n")) > rules.max_code_lines:
        message = f"{lines} lines; a Python file has at most {rules.max_code_lines} (write instead: two modules)"
        yield Finding(path=path, line=1, message=message)
    if name.suffix == ".md":
        for line, columns in long_prose_lines(source, rules.max_prose_columns):
            message = f"prose of {columns} columns (write instead: lines of at most {rules.max_prose_columns})"
            yield Finding(path=path, line=line, message=message)
    if rules.are_waived(path):
        return
    for passage in passages_of(name, source):
        if passage.kind == "name":
            yield from _check_name(path, passage, rules)
        else:
            yield from _check_passage(path, passage, rules)


def _check_passage(path: str, passage: Passage, rules: Rules) -> Iterator[Finding]:
    if passage.kind in ("docstring", "description"):
        for rule in rules.starts:
            if (match := rule.pattern.match(passage.text)) and not rules.are_waived(path, rule):
                message = f'{passage.kind} starts with "{match.group().strip()}" (write instead: {rule.write})'
                yield Finding(path=path, line=passage.line, message=message)
    if passage.kind == "description":
        return  # its phrases are found in the passage of kind "text" with the same words
    for rule in rules.phrases:
        if rules.are_waived(path, rule):
            continue
        for match in rule.pattern.finditer(passage.text):
            line = passage.line + passage.text.count("\n", 0, match.start())
            message = f'"{" ".join(match.group().split())}" (write instead: {rule.write})'
            yield Finding(path=path, line=line, message=message)


def _check_name(path: str, passage: Passage, rules: Rules) -> Iterator[Finding]:
    for rule in rules.names:
        if rule.pattern.fullmatch(passage.text) and not rules.are_waived(path, rule):
            message = f"name `{passage.text}` (write instead: {rule.write})"
            yield Finding(path=path, line=passage.line, message=message)
    if passage.text.startswith("test_"):
        words = Passage(line=passage.line, text=passage.text.replace("_", " "), kind="text")
        for finding in _check_passage(path, words, rules):
            yield Finding(path=path, line=finding.line, message=f"test name `{passage.text}`: {finding.message}")


def check_folders(paths: Iterable[str], rules: Rules) -> Iterator[Finding]:
    """Yield a finding for each folder with too many modules, given all files of these folders."""
    modules = Counter(
        str(PurePosixPath(path).parent) for path in paths if path.endswith(".py") and not path.endswith("__init__.py")
    )
    for folder, number in modules.items():
        if number > rules.max_modules:
            message = f"{number} modules in one folder; at most {rules.max_modules} (write instead: a folder per topic)"
            yield Finding(path=folder, line=1, message=message)


def files_of_repository() -> list[str]:
    """Return the files that git tracks, and the untracked ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(path for path in listed.split("\0") if path and Path(path).is_file())


def main(arguments: Sequence[str]) -> int:
    """Check the files named and their folders, or the whole repository."""
    rules, known = load_rules(), files_of_repository()
    chosen = [_from_root(Path(argument)) for argument in arguments] or known
    folders = {PurePosixPath(path).parent for path in chosen}
    findings = list(check_folders([path for path in known if PurePosixPath(path).parent in folders], rules))
    for path in chosen:
        try:
            source = Path(path).read_text()
        except UnicodeDecodeError:
            continue  # a picture or another binary file
        findings += check_file(path, source, rules)
    for finding in sorted(findings):
        print(finding)
    if findings:
        print(f"\n{len(findings)} findings; rules and advice: tools/{RULES_FILE.name}", file=sys.stderr)
    return 1 if findings else 0


def _from_root(path: Path) -> str:
    absolute = path.absolute()
    return (absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute).as_posix()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
