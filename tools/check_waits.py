"""Check for waits without a deadline, run by `make lint`: `python -m tools.check_waits [PATH ...]`.

A call that may wait forever hangs its process when its counterpart does. The check finds such calls by their form, in
`actors/`, `pipelines/` and `rlad/` by default. Where unlimited waiting is right, a comment on the call's lines, or on
the line above, says why:

    self._ended.wait()  # unlimited wait: the main thread has nothing else to do

Findings are printed one per line as `path:line: message`; the exit status is 1 if there are any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("actors", "pipelines", "rlad")

_ALLOWED = re.compile(r"#\s*unlimited wait:\s*(?P<reason>.*)")
# Functions that wait, by module, with the names of the arguments that limit the wait.
_FUNCTIONS = {
    "ray.get": ("timeout",),
    "ray.wait": ("timeout",),
    "asyncio.wait": ("timeout",),
    "concurrent.futures.wait": ("timeout",),
    "futures.wait": ("timeout",),
    "subprocess.run": ("timeout",),
    "subprocess.call": ("timeout",),
    "subprocess.check_call": ("timeout",),
    "subprocess.check_output": ("timeout",),
}
# Methods that wait without limit unless they are given one of these arguments, or a positional one.
_METHODS = {
    "wait": ("timeout", "timeout_s"),
    "get": ("timeout",),
    "join": ("timeout",),
    "acquire": ("timeout",),
    "communicate": ("timeout",),
}
_TIMEOUT_BLOCKS = ("asyncio.timeout", "asyncio.timeout_at")
# Functions that await their arguments with a deadline.
_LIMITING_FUNCTIONS = ("asyncio.wait_for", "within", "_within")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """A wait without a deadline, or a comment that allows none."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def check_source(path: str, source: str) -> list[Finding]:
    """Return the findings in a module.

    Args:
        path: Path of the module, for the findings.
        source: Its source text.
    """
    allowed = {
        number: match["reason"].strip()
        for number, line in enumerate(source.splitlines(), start=1)
        if (match := _ALLOWED.search(line))
    }
    findings, used = [], set()
    for node, what in _unlimited_waits(ast.parse(source)):
        lines = range(node.lineno - 1, (node.end_lineno or node.lineno) + 1)
        comments = [number for number in lines if number in allowed]
        if comments:
            used.update(comments)
            continue
        advice = "give it a deadline, or write `# unlimited wait: REASON`"
        findings.append(Finding(path=path, line=node.lineno, message=f"{what} waits without a deadline: {advice}"))
    for number, reason in allowed.items():
        if not reason:
            findings.append(Finding(path=path, line=number, message="`# unlimited wait:` requires a reason"))
        elif number not in used:
            findings.append(Finding(path=path, line=number, message="`# unlimited wait:` allows no wait: remove it"))
    return sorted(findings)


def _unlimited_waits(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """Yield the expressions that wait without a deadline, each with its description."""
    for function in (tree, *(node for node in ast.walk(tree) if isinstance(node, _FUNCTION_NODES))):
        references = _references(function)
        yield from _waits_in(_own_statements(function), references, limited=False)


_FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _own_statements(function: ast.AST) -> list[ast.AST]:
    if isinstance(function, ast.Lambda):
        return [function.body]
    return list(getattr(function, "body", []))


def _own_nodes(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Yield nodes with their descendants, without the bodies of nested functions."""
    for node in nodes:
        if isinstance(node, _FUNCTION_NODES):
            continue
        yield node
        yield from _own_nodes(list(ast.iter_child_nodes(node)))


def _references(function: ast.AST) -> set[str]:
    """Return the names that a function assigns from remote calls: object references."""
    names: set[str] = set()
    for node in _own_nodes(_own_statements(function)):
        if isinstance(node, ast.Assign) and _is_remote_call(node.value):
            for target in node.targets:
                names |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def _waits_in(nodes: Sequence[ast.AST], references: set[str], *, limited: bool) -> Iterator[tuple[ast.expr, str]]:
    """Yield the waits of some nodes, without those of nested functions.

    Args:
        nodes: Nodes to look at.
        references: Names of object references.
        limited: Whether the nodes are in a block with a deadline, which limits every `await`.
    """
    for node in nodes:
        if isinstance(node, _FUNCTION_NODES):
            continue
        if isinstance(node, ast.AsyncWith):
            has_deadline = any(_name_of_call(item.context_expr) in _TIMEOUT_BLOCKS for item in node.items)
            yield from _waits_in([item.context_expr for item in node.items], references, limited=limited)
            yield from _waits_in(node.body, references, limited=limited or has_deadline)
            continue
        if isinstance(node, ast.Await):
            if limited:
                # Awaited calls of the block end with it; what they are given is computed before.
                arguments = list(ast.iter_child_nodes(node.value))
                yield from _waits_in(arguments, references, limited=limited)
                continue
            if _is_remote_call(node.value):
                yield node, "`await ....remote()`"
            elif isinstance(node.value, ast.Name) and node.value.id in references:
                yield node, f"`await {node.value.id}`, an object reference,"
        if isinstance(node, ast.Call) and _name_of_call(node) in _LIMITING_FUNCTIONS:
            limited_arguments = [child for argument in node.args for child in ast.iter_child_nodes(argument)]
            yield from _waits_in(limited_arguments, references, limited=limited)
            continue
        if isinstance(node, ast.Call) and (what := _unlimited_call(node)) is not None:
            yield node, what
        yield from _waits_in(list(ast.iter_child_nodes(node)), references, limited=limited)


def _unlimited_call(call: ast.Call) -> str | None:
    """Return the description of a call that waits without a deadline; None for other calls."""
    name, given = _name_of_call(call), {keyword.arg for keyword in call.keywords}
    if None in given:  # `**options` may hold the deadline
        return None
    if name in _FUNCTIONS:
        return None if given & set(_FUNCTIONS[name]) else f"`{name}()`"
    if name in ("fcntl.flock", "fcntl.lockf"):
        flags = {
            node.attr for argument in call.args[1:] for node in ast.walk(argument) if isinstance(node, ast.Attribute)
        }
        return None if flags & {"LOCK_NB", "LOCK_UN"} else f"`{name}()`"
    if isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS:
        limits = _METHODS[call.func.attr]
        return None if call.args or given & set(limits) else f"`.{call.func.attr}()`"
    return None


def _is_remote_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "remote"


def _name_of_call(node: ast.AST) -> str | None:
    """Return the dotted name of a called function; None for a call of anything else."""
    if not isinstance(node, ast.Call):
        return None
    parts: list[str] = []
    called: ast.AST = node.func
    while isinstance(called, ast.Attribute):
        parts.append(called.attr)
        called = called.value
    return ".".join([called.id, *reversed(parts)]) if isinstance(called, ast.Name) else None


def main(arguments: Sequence[str]) -> int:
    """Check the modules below some folders or files. Return the exit status."""
    roots = [Path(argument) for argument in arguments or FOLDERS]
    modules = [module for root in roots for module in ([root] if root.is_file() else sorted(root.rglob("*.py")))]
    findings = [finding for module in modules for finding in check_source(str(module), module.read_text())]
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
