"""Tests of the language lint on small files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_language import RULES_FILE, Finding, Rules, check_file, check_folders, load_rules

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def rules() -> Rules:
    return load_rules()


def places(path: str, source: str, rules: Rules) -> list[tuple[int, str]]:
    """Return the line and the first word or quotation of each finding."""
    return [(finding.line, finding.message.split(" (write")[0]) for finding in check_file(path, source, rules)]


def test_phrase_is_found_in_a_comment_a_docstring_and_a_message(rules: Rules) -> None:
    source = '''"""Pool of workers.

    Whoever holds it waits.
    """

    def run(step):  # goes on until the end
        raise ValueError(f"step {step}: so many responses")
    '''.replace("\n    ", "\n")
    assert sorted(places("rlad/a.py", source, rules)) == [(3, '"Whoever"'), (6, '"goes on"'), (7, '"so many"')]


def test_finding_names_the_place_and_the_replacement(rules: Rules) -> None:
    (finding,) = check_file("docs/a.md", "The run goes on.\n", rules)
    assert str(finding) == 'docs/a.md:1: "goes on" (write instead: continues)'


def test_code_is_not_prose(rules: Rules) -> None:
    source = "goes_on = what_is_called = 1\nif goes_on:\n    leash = goes_on\n"
    assert places("rlad/a.py", source, rules) == []
    assert places("docs/a.md", "Use `Whoever goes on` here.\n", rules) == []


def test_phrase_is_found_across_a_line_break(rules: Rules) -> None:
    assert places("rlad/a.py", "# the run goes\n# on\nx = 1\n", rules) == [(1, '"goes on"')]
    assert places("rlad/a.py", "x = 'the run goes ' \\\n    'on'\n", rules) == [(1, '"goes on"')]
    assert places("docs/a.md", "first\n\nthe run goes\non\n", rules) == [(3, '"goes on"')]
    assert places("configs/a.yaml", "a: 1\n# the run goes\n# on\n", rules) == [(2, '"goes on"')]


def test_comments_of_separate_statements_are_separate_texts(rules: Rules) -> None:
    assert places("rlad/a.py", "x = 1  # it goes\ny = 2  # on\n", rules) == []


def test_placeholder_separates_the_words_around_it(rules: Rules) -> None:
    assert places("rlad/a.py", "def f(n):\n    return f'so {n} many'\n", rules) == []


def test_words_inside_longer_words_do_not_count(rules: Rules) -> None:
    assert places("docs/a.md", "Shape of the tensor is of oursonian size; undergoes only one.\n", rules) == []


@pytest.mark.parametrize("phrase", ["what is the unit called", "What was called", "what is a model of it called"])
def test_phrase_may_have_words_in_its_middle(phrase: str, rules: Rules) -> None:
    assert places("docs/a.md", phrase + "\n", rules) == [(1, f'"{phrase}"')]


@pytest.mark.parametrize("start", ["What", "Of", "Whoever", "Who", "Whose", "Whether it"])
@pytest.mark.parametrize(
    ("template", "line"),
    [
        ('"""{} is here."""\n', 1),
        ('class A:\n    """{} is here."""\n', 2),
        ('async def f():\n    """\n    {} is here."""\n', 2),
        ('x = 1\n"""{} is here."""\n', 2),
    ],
)
def test_docstring_starts_with_a_verb_or_a_noun(start: str, template: str, line: int, rules: Rules) -> None:
    found = places("rlad/a.py", template.format(start), rules)
    assert (line, f'docstring starts with "{start}"') in found


@pytest.mark.parametrize("start", ["Whether the", "Offline", "Whole", "Return what", "A file of"])
def test_ordinary_docstring_starts_pass(start: str, rules: Rules) -> None:
    assert places("rlad/a.py", f'"""{start} run."""\n', rules) == []


def test_descriptions_of_settings_and_options_start_like_docstrings(rules: Rules) -> None:
    source = 'Field(description="Of the step.")\nOption(help=f"What {x} is.")\nOption(title="Of the step.")\n'
    assert places("rlad/a.py", source, rules) == [
        (1, 'description starts with "Of"'),
        (2, 'description starts with "What"'),
    ]


def test_phrase_in_a_description_is_reported_once(rules: Rules) -> None:
    assert places("rlad/a.py", 'Field(description="The run goes on.")\n', rules) == [(1, '"goes on"')]


def test_names_of_tests_are_read_as_sentences(rules: Rules) -> None:
    source = "def test_run_goes_on():\n    goes_on()\n\ndef helper_goes_on(): ...\n"
    assert places("tests/a.py", source, rules) == [(1, 'test name `test_run_goes_on`: "goes on"')]


def test_replaced_names_are_not_defined_again(rules: Rules) -> None:
    source = "class GroupFollower:\n    def patiently(self, outlet): ...\n\nclass GroupFollowers: ...\n"
    assert [line for line, _ in places("rlad/a.py", source, rules)] == [1, 2, 2]


def test_exempt_file_is_checked_for_size_only(rules: Rules) -> None:
    source = "# goes on\n" * 401
    assert places("tests/unit/tools/test_a.py", source, rules) == [(1, "401 lines; a Python file has at most 400")]


def test_exemption_may_be_for_one_phrase(tmp_path: Path) -> None:
    text = RULES_FILE.read_text() + '\n[[exempt]]\npath = "deploy/*"\npattern = "nobody"\nreason = "user"\n'
    (tmp_path / "rules.toml").write_text(text)
    rules = load_rules(tmp_path / "rules.toml")
    assert places("deploy/rlad.service", "User=nobody\n# goes on\n", rules) == [(2, '"goes on"')]
    assert places("docs/a.md", "User: nobody\n", rules) == [(1, '"nobody"')]


@pytest.mark.parametrize(("lines", "findings"), [(400, 0), (401, 1)])
def test_python_file_has_at_most_400_lines(lines: int, findings: int, rules: Rules) -> None:
    assert len(list(check_file("rlad/a.py", "x = 1\n" * lines, rules))) == findings


@pytest.mark.parametrize(("modules", "findings"), [(15, []), (16, [Finding(path="rlad/a", line=1, message="")])])
def test_folder_has_at_most_15_modules(modules: int, findings: list[Finding], rules: Rules) -> None:
    paths = [f"rlad/a/m{number}.py" for number in range(modules)] + [
        "rlad/a/__init__.py",
        "rlad/a/b/c.py",
        "rlad/a/d.md",
    ]
    found = list(check_folders(paths, rules))
    assert [(finding.path, finding.line) for finding in found] == [(finding.path, finding.line) for finding in findings]


WIDE = "word " * 20 + "end"  # 103 columns
URL = "https://example.com/" + "a" * 100


@pytest.mark.parametrize(
    "line",
    [
        WIDE,
        f"- {WIDE}",
        f"> {WIDE}",
        f"- item\n\n    {WIDE}",
        f"see {URL}",
        f"```sh\nls\n```\n{WIDE}",
        f"---\ntitle: x\n---\n{WIDE}",
    ],
)
def test_prose_in_markdown_has_at_most_100_columns(line: str, rules: Rules) -> None:
    width = len(line.splitlines()[-1])
    assert places("docs/a.md", line + "\n", rules) == [(line.count("\n") + 1, f"prose of {width} columns")]


@pytest.mark.parametrize(
    "text",
    [
        "word " * 19 + "abcde",  # 100 columns
        f"```\n{WIDE}\n```",
        f"````\n```\n{WIDE}\n````",
        f"~~~ text\n{WIDE}\n~~~",
        f"1. step\n   ```sh\n   {WIDE}\n   ```",
        f"text\n\n    {WIDE}",
        f"| {WIDE} | {WIDE} |",
        f"## {WIDE}",
        URL,
        f"- [{WIDE}]({URL}).",
        f"![{WIDE}]({URL})",
        f"[name]: {URL} '{WIDE}'",
        f'<img src="a.png" alt="{WIDE}">',
        f"---\ndescription: {WIDE}\n---",
    ],
)
def test_lines_that_cannot_be_wrapped_may_be_wider(text: str, rules: Rules) -> None:
    assert places("docs/a.md", text + "\n", rules) == []


def test_command_prints_findings_and_fails(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.md", tmp_path / "good.md"
    bad.write_text("first\nIt goes on.\n")
    good.write_text("It continues.\n")
    command = [sys.executable, "-m", "tools.check_language"]
    failed = subprocess.run([*command, str(bad)], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert f'{bad}:2: "goes on" (write instead: continues)' in failed.stdout.splitlines()
    passed = subprocess.run([*command, str(good)], cwd=ROOT, capture_output=True, text=True)
    assert (passed.returncode, passed.stdout, passed.stderr) == (0, "", "")
