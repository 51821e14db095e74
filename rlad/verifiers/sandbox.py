"""Untrusted Python programs for verifiers: run with inputs, or examined by tests, in the sandbox of `rlad.sandbox`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rlad.sandbox.limits import SandboxLimits
from rlad.sandbox.session import SandboxResult, SandboxSession
from rlad.verifiers.code_test_names import names_of_tests

__all__ = ["SandboxLimits", "SandboxResult", "examine_sandboxed", "run_inputs_sandboxed", "run_sandboxed"]

# Maximum size of the outputs of all runs of a program together.
_MAX_OUTPUT_BYTES = 64 << 20


def run_inputs_sandboxed(
    source: str, *, limits: SandboxLimits, inputs: Sequence[str], imports: str = ""
) -> list[SandboxResult]:
    """Run Python source once for each standard input, in sandboxes that one process forks.

    The interpreter starts once, which is most of the time of a small program. The runs share a Landlock ruleset, but
    no directory. They end after the first one that does not exit with 0, or at the wall time of all of them together.

    Args:
        source: The program.
        limits: Resource limits. The wall time is that of all runs together.
        inputs: Standard input of each run.
        imports: Python source of imports that run before the program.

    Returns:
        The results in order. The last one may be a timeout or a failure; there are fewer than inputs then.

    Raises:
        EngineError: The sandbox itself failed.
    """
    deadline = time.monotonic() + limits.wall_s
    results: list[SandboxResult] = []
    with SandboxSession(limits) as session:
        for text in inputs:
            results.append(session.run(source, deadline=deadline, stdin=text, imports=imports))
            if results[-1].exit_code != 0 or sum(len(result.stdout) for result in results) > _MAX_OUTPUT_BYTES:
                break
    return results


def run_sandboxed(
    source: str, *, limits: SandboxLimits, stdin: str = "", asserts: str | None = None, imports: str = ""
) -> SandboxResult:
    """Run Python source, then assertions about its functions.

    Args:
        source: The program.
        limits: Resource limits.
        stdin: Standard input of the program.
        asserts: Python source of the assertions, which run in another process; None without assertions.
        imports: Python source of imports that run before the program.

    Raises:
        EngineError: The sandbox itself failed.
        DataError: The assertions are not Python.
    """
    if asserts is not None:
        names, own_imports = names_of_tests(asserts, source, None)
        tests = {"asserts": asserts, "names": names, "imports": own_imports}
        return examine_sandboxed(source, tests, limits=limits, stdin=stdin, imports=imports)
    [result] = run_inputs_sandboxed(source, limits=limits, inputs=[stdin], imports=imports)
    return result


def examine_sandboxed(
    source: str, tests: dict[str, Any], *, limits: SandboxLimits, stdin: str = "", imports: str = ""
) -> SandboxResult:
    """Run Python source, then tests that use its functions from a process of their own.

    The program cannot read the tests and decides nothing: `has_passed` is the examiner's.

    Args:
        source: The program.
        tests: Tests (see `rlad.sandbox.inside.examiner.examine`).
        limits: Resource limits of the program and of the tests, each. The wall time is that of both together.
        stdin: Standard input of the program.
        imports: Python source of imports that run before the program.

    Raises:
        EngineError: The sandbox itself failed.
    """
    deadline = time.monotonic() + limits.wall_s
    with SandboxSession(limits, tests=tests) as session:
        return session.run(source, deadline=deadline, stdin=stdin, imports=imports, examine=True)
