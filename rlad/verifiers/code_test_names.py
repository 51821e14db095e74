"""Names that programs and their tests use without defining them, and where each name of a test comes from.

A test's names are resolved by rules that do not depend on what the program does: a program that defines its own `abs`,
`len` or `isclose` must not change what a test computes.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Mapping

from rlad.errors import DataError

# Modules and names that programs of such data sets use without importing them.
_MODULES = (
    "bisect",
    "collections",
    "copy",
    "datetime",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "random",
    "re",
    "statistics",
    "string",
    "sys",
    "time",
)
_NAMES = {
    "typing": ("List", "Dict", "Set", "Tuple", "Optional", "Union", "Any", "Callable", "Iterable", "Iterator"),
    "collections": ("defaultdict", "deque", "Counter", "OrderedDict", "namedtuple"),
    "heapq": ("heappush", "heappop", "heapify", "heappushpop", "heapreplace", "nlargest", "nsmallest"),
    "functools": ("lru_cache", "cache", "reduce", "cmp_to_key", "cached_property"),
    "itertools": (
        *("accumulate", "chain", "combinations", "combinations_with_replacement", "count", "cycle", "groupby"),
        *("islice", "permutations", "product", "repeat", "zip_longest", "pairwise"),
    ),
    "bisect": ("bisect_left", "bisect_right", "insort"),
    "math": ("gcd", "lcm", "sqrt", "inf", "ceil", "floor", "log", "log2", "comb", "factorial", "isqrt", "prod"),
    "string": ("ascii_lowercase", "ascii_uppercase"),
    "copy": ("deepcopy",),
}
# What tests use besides, with the name of the module's attribute; None for the module itself.
_OF_TESTS: Mapping[str, tuple[str, str | None]] = {
    "np": ("numpy", None),
    "numpy": ("numpy", None),
    "isclose": ("math", "isclose"),
    "pi": ("math", "pi"),
    "fabs": ("math", "fabs"),
    "approx": ("pytest", "approx"),
    "pytest": ("pytest", None),
    "unittest": ("unittest", None),
    "decimal": ("decimal", None),
    "Decimal": ("decimal", "Decimal"),
    "fractions": ("fractions", None),
    "Fraction": ("fractions", "Fraction"),
    "cmath": ("cmath", None),
    "os": ("os", None),
}


def assumed_imports(source: str) -> str:
    """Return imports of the names that a program uses without defining them and that such data sets assume."""
    nodes = list(ast.walk(ast.parse(source)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    bound |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    missing = used - bound - set(dir(builtins))
    lines = [f"import {module}" for module in _MODULES if module in missing]
    lines += [f"from {module} import {name}" for module, names in _NAMES.items() for name in names if name in missing]
    return "\n".join(lines)


def names_of_tests(asserts: str, source: str, entry_point: str | None) -> tuple[list[str], str]:
    """Decide where the names that assertions use without defining them come from.

    - Built-in names and the names that data sets assume (`math`, `Counter`, ...) are the tests' own, imported.
    - All other names are the program's, and so is the entry point.
    - Tests without any other name test a function of a built-in or assumed name, for example `gcd`: then these are the
      program's.

    Args:
        asserts: Python source of the assertions.
        source: The program.
        entry_point: Name of the tested function, if the tests give it.

    Returns:
        The names to take from the program, and the source of the imports of the others.

    Raises:
        DataError: The assertions are not Python.
    """
    try:
        free = sorted(_free_names(symtable.symtable(asserts, "tests.py", "exec")))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"code_tests: the assertions of a programming task are not Python: {error}") from error
    assumed = {name for names in _NAMES.values() for name in names}
    trusted = assumed | set(_MODULES) | set(_OF_TESTS) | set(dir(builtins)) | {"__name__", "__file__", "__doc__"}
    imported = _imports(source)
    programs = [name for name in free if name not in trusted and name not in imported]
    if entry_point is not None:
        programs = sorted({*programs, entry_point})
    elif not programs:
        defined = _definitions(source)
        programs = [name for name in free if name in defined and name in assumed | {"isclose"}]
        programs = programs or [name for name in free if name in defined and hasattr(builtins, name)]
    lines = []
    for name in free:
        if name in programs or hasattr(builtins, name):
            continue
        if name in _OF_TESTS:
            module, attribute = _OF_TESTS[name]
            lines.append(f"import {module} as {name}" if attribute is None else f"from {module} import {attribute}")
        elif name in _MODULES:
            lines.append(f"import {name}")
        elif name in assumed:
            module = next(module for module, names in _NAMES.items() if name in names)
            lines.append(f"from {module} import {name}")
        elif name in imported:
            lines.append(imported[name])
    return programs, "\n".join(lines)


def _free_names(module: symtable.SymbolTable) -> set[str]:
    """Return the global names that a source uses and does not bind."""
    used: set[str] = set()
    bound: set[str] = set()
    tables = [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if not symbol.is_global():
                continue
            if symbol.is_referenced():
                used.add(symbol.get_name())
            if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                bound.add(symbol.get_name())
    return used - bound


def _imports(source: str) -> dict[str, str]:
    """Return the imports at the top of a program by the name that they bind."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                suffix = f" as {alias.asname}" if alias.asname else ""
                found[alias.asname or alias.name] = f"from {node.module} import {alias.name}{suffix}"
    return found


def _definitions(source: str) -> set[str]:
    """Return the names that a program defines at its top."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found
