"""Code: reward 1 if the response's program passes every test, else 0. The program runs in `rlad.verifiers.sandbox`.

The program is the last fenced Python block after the thinking. It is the only verifier that runs what a model wrote, and its process is trusted with
nothing: no network, no files but its own, bounded memory, time and processes.
"""

from __future__ import annotations

import re
import time
import warnings
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rlad.contracts import Outcome
from rlad.errors import DataError
from rlad.verifiers.response_text import after_thinking
from rlad.verifiers.sandbox import SandboxLimits, run_sandboxed
from rlad.verifiers.verdict import CORRECT, UNPARSEABLE, WRONG, Verdict

_FENCED = re.compile(
    r"^[ \t]*```[ \t]*(?P<language>\w*)[^\n]*\n(?P<code>.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE
)
_TIMEOUT = Verdict(reward=0.0, outcome=Outcome.TIMEOUT)


class CodeTestsVerifierConfig(BaseModel):
    """Settings of the verifier that runs code.

    A prompt's answer is JSON: a list of `{"input": ..., "output": ...}` for programs that read standard input, or `{"asserts": "assert f(1) == 2"}`
    for programs whose names are tested.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["code_tests"]
    timeout_s: float = Field(
        8.0, gt=0, description="Wall time of all tests of a response together. Keep it below `verifier_pool.timeout_s`."
    )
    cpu_s: int = Field(5, ge=1, description="Processor time of one test.")
    memory_mib: int = Field(1024, ge=64, description="Address space of a program.")
    file_mib: int = Field(8, ge=1, description="Size of any file a program writes, its output included.")
    processes: int = Field(8, ge=1, description="Processes and threads a program may be at once.")

    def build(self) -> CodeTestsVerifier:
        limits = SandboxLimits(
            wall_s=self.timeout_s,
            cpu_s=self.cpu_s,
            memory_mib=self.memory_mib,
            file_mib=self.file_mib,
            processes=self.processes,
        )
        return CodeTestsVerifier(limits=limits)


class _InputOutput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    input: str
    output: str


class _Asserts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    asserts: Annotated[str, Field(min_length=1)]


_TESTS: TypeAdapter[list[_InputOutput] | _Asserts] = TypeAdapter(
    Annotated[list[_InputOutput], Field(min_length=1)] | _Asserts
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTestsVerifier:
    """Runs a response's program against tests, one after the other until one fails.

    Outputs are compared line by line, without regard to white space at the ends of lines and of the output. A program that dies, by an exception or
    for want of memory, is wrong; one that is not Python is unparseable; one that runs out of time, or of processor time, is a timeout.

    Attributes:
        limits: of one program; the wall time is that of all tests together.
    """

    limits: SandboxLimits

    def verify(self, response_text: str, answer: str) -> Verdict:
        """Judge a response.

        Args:
            answer: the tests as JSON (see `CodeTestsVerifierConfig`).

        Raises:
            DataError: `answer` holds no tests.
            EngineError: the sandbox itself failed.
        """
        try:
            tests = _TESTS.validate_json(answer)
        except ValidationError as error:
            raise DataError(
                'the answer of a programming task is JSON such as [{"input": "1 2", "output": "3"}] or {"asserts": "assert add(1, 2) == 3"}, '
                f"got {answer[:200]!r}"
            ) from error
        spoken = after_thinking(response_text)
        source = None if spoken is None else _last_program(spoken)
        if source is None or not _is_python(source):
            return UNPARSEABLE
        deadline = time.monotonic() + self.limits.wall_s
        for test in [tests] if isinstance(tests, _Asserts) else tests:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return _TIMEOUT
            verdict = _verdict_of(source, test, self.limits, remaining_s)
            if verdict != CORRECT:
                return verdict
        return CORRECT


def _verdict_of(source: str, test: _InputOutput | _Asserts, limits: SandboxLimits, wall_s: float) -> Verdict:
    limits = replace(limits, wall_s=wall_s)
    if isinstance(test, _Asserts):
        result = run_sandboxed(source, limits=limits, asserts=test.asserts)
        is_right = result.has_passed
    else:
        result = run_sandboxed(source, limits=limits, stdin=test.input)
        is_right = result.has_passed and _lines(result.stdout) == _lines(test.output)
    if result.ended == "timeout":
        return _TIMEOUT
    return CORRECT if is_right else WRONG


def _last_program(text: str) -> str | None:
    """The last fenced block that is marked as Python, or not marked at all where none is."""
    blocks = list(_FENCED.finditer(text))
    python = [block["code"] for block in blocks if block["language"].lower() in ("python", "python3", "py")]
    unmarked = [block["code"] for block in blocks if not block["language"]]
    return next(reversed(python or unmarked), None)


def _is_python(source: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, "solution.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _lines(output: str) -> list[str]:
    return [line.rstrip() for line in output.rstrip().splitlines()]
