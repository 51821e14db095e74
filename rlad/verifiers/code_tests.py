"""Code verifier: reward 1 if the response's program passes every test, else 0.

The program is the last fenced Python block after the thinking. `rlad.verifiers.sandbox` runs it. No other verifier of
this package runs code of a model. The process is untrusted: it has no network, no files but its own, and bounded
memory, time and processes. It has no part in the verdict: outputs are compared here, and assertions run in a process of
their own.
"""

from __future__ import annotations

import re
import textwrap
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from rlad.errors import DataError
from rlad.sandbox.limits import SandboxLimits
from rlad.sandbox.probe import Isolation, require_isolation
from rlad.verifiers.code_test_forms import CodeTests, outputs_equal, read_tests
from rlad.verifiers.code_test_names import assumed_imports, names_of_tests
from rlad.verifiers.response_tags import TaggedVerifierConfig
from rlad.verifiers.response_text import after_thinking
from rlad.verifiers.sandbox import examine_sandboxed, run_inputs_sandboxed
from rlad.verifiers.verdict import CORRECT, TIMEOUT, UNPARSEABLE, WRONG, Verdict

_FENCED = re.compile(
    r"^[ \t]*(?P<fence>```|~~~)[ \t]*(?P<language>\w*)[^\n]*\n(?P<code>.*?)^[ \t]*(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


class CodeTestsVerifierConfig(TaggedVerifierConfig):
    """Settings of the verifier that runs code.

    A prompt's answer is JSON: a list of `{"input": ..., "output": ...}` for programs that read standard input, or
    `{"asserts": "assert f(1) == 2"}` for programs whose functions are tested. The forms of APPS, TACO, LiveCodeBench,
    PRIME, MBPP and HumanEval are read too.
    """

    name: Literal["code_tests"]
    timeout_s: float = Field(
        8.0,
        gt=0,
        description="Wall time of all tests of a response, in seconds. Keep it below `verifier_pool.timeout_s`.",
    )
    cpu_s: int = Field(5, ge=1, description="CPU time of one test, in seconds.")
    memory_mib: int = Field(1024, ge=64, description="Address space of a program, in MiB.")
    file_mib: int = Field(
        8, ge=1, description="Maximum size of a file that a program writes, including its output, in MiB."
    )
    processes: int = Field(8, ge=1, description="Maximum number of concurrent processes and threads of a program.")
    disk_mib: int = Field(64, ge=1, description="Maximum size of all files of a program together, in MiB.")
    isolation: Isolation = Field(
        "full",
        description="Weakest isolation that is accepted: `full` (namespaces, Landlock and seccomp), `filtered` "
        "(Landlock and seccomp, which is what a pod without capabilities has) or `any`. Where less holds, the run is "
        "refused; `rlad doctor sandbox` says what holds on a machine.",
    )

    def build(self) -> CodeTestsVerifier:
        """Return the verifier.

        Raises:
            ConfigError: This machine gives less isolation than `isolation`.
        """
        require_isolation(self.isolation, "the verifier code_tests, which runs programs of a model,")
        limits = SandboxLimits(
            wall_s=self.timeout_s,
            cpu_s=self.cpu_s,
            memory_mib=self.memory_mib,
            file_mib=self.file_mib,
            processes=self.processes,
            disk_mib=self.disk_mib,
        )
        return CodeTestsVerifier(limits=limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTestsVerifier:
    """Verifier that runs a response's program against tests, in order, until one fails.

    Outputs are compared line by line, ignoring trailing white space of lines and of the output. Expected decimals may
    differ by 1e-6. Common imports that such data sets assume are added. A program that ends
    with an exception or runs out of memory is wrong. A program that is not Python is unparseable. A program that
    exceeds its wall time or CPU time is a timeout.

    Attributes:
        limits: Limits of a program. The wall time is that of all tests together.
    """

    limits: SandboxLimits

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Verify a response.

        Args:
            response_text: The response, without its prompt.
            answer: The tests as JSON (see `CodeTestsVerifierConfig`).

        Raises:
            DataError: `answer` holds no tests.
            EngineError: The sandbox itself failed.
        """
        tests = read_tests(answer)
        if tests is None:
            raise DataError(
                "code_tests: the answer of a programming task must be JSON such as "
                '[{"input": "1 2", "output": "3"}] or {"asserts": "assert add(1, 2) == 3"}, '
                f"got {answer[:200]!r}"
            )
        text = after_thinking(response_text)
        source = None if text is None else _last_program(text.replace("\r\n", "\n"))
        if source is None or not _is_python(source):
            return UNPARSEABLE
        return _verdict_of(source, tests, self.limits)


def _verdict_of(source: str, tests: CodeTests, limits: SandboxLimits) -> Verdict:
    imports = assumed_imports(source)
    if not tests.inputs:
        result = examine_sandboxed(source, _examination(source, tests), limits=limits, imports=imports)
        if result.ended == "timeout":
            return TIMEOUT
        return CORRECT if result.has_passed else WRONG
    inputs = [text.replace("\r\n", "\n") for text in tests.inputs]
    results = run_inputs_sandboxed(source, limits=limits, inputs=inputs, imports=imports)
    for result, expected in zip(results, tests.outputs, strict=False):
        if result.ended == "timeout":
            return TIMEOUT
        if not result.has_passed or not outputs_equal(result.stdout, expected):
            return WRONG
    return CORRECT if len(results) == len(tests.outputs) else WRONG


def _examination(source: str, tests: CodeTests) -> dict[str, Any]:
    """Return the tests in the form of the examiner."""
    if tests.asserts is None:
        return {"name": tests.function, "calls": tests.calls}
    names, imports = names_of_tests(tests.asserts, source, tests.function)
    return {"asserts": tests.asserts, "names": names, "imports": imports}


def _last_program(text: str) -> str | None:
    """Return the last fenced block marked as Python, or else the last block without a language."""
    blocks = list(_FENCED.finditer(text))
    python = [block["code"] for block in blocks if block["language"].lower() in ("python", "python3", "py")]
    unmarked = [block["code"] for block in blocks if not block["language"]]
    program = next(reversed(python or unmarked), None)
    return None if program is None else textwrap.dedent(program)


def _is_python(source: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, "solution.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True
