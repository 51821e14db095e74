"""Judges: child processes that run verifiers and are killed when a response exceeds its deadline.

Verifiers run third-party parsers on model output. A regular expression can backtrack for hours while it holds the
interpreter lock, so only a killable process keeps a deadline. The child imports verifiers, but no cluster or engine
code.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from pebble import ProcessExpired, ProcessPool

from actors.verifier.confinement import keep_environment, limit_memory
from rlad.contracts import Outcome
from rlad.errors import EngineError
from rlad.verifiers import ComparesAnswers, GivesAnswer, Verifier
from rlad.verifiers.verdict import WarmsUp

BuildVerifiers = Callable[[], Mapping[str, Verifier]]

# Time beyond a response's own deadline after which a child that has not begun the response is considered broken.
# Importing verifiers takes a few seconds at most.
_CHILD_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Result of judging one response.

    Attributes:
        elapsed_s: Seconds spent on the response.
        problem: Reason of an error outcome, for the log: its kind, a colon and the details.
    """

    reward: float
    outcome: Outcome
    elapsed_s: float
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Result of comparing one answer with others.

    Attributes:
        is_same: True for each answer that means the same; False for all if the comparison failed or timed out.
        problem: Reason of a failed comparison, for the log.
    """

    is_same: tuple[bool, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Answer extracted from a response.

    Attributes:
        answer: None if the response gives none, or if the extraction failed or timed out.
        problem: Reason of a failed extraction, for the log.
    """

    answer: str | None
    problem: str | None = None


class Judge:
    """One child process. Not thread-safe: a judge takes one group at a time."""

    def __init__(
        self,
        build_verifiers: BuildVerifiers,
        *,
        timeout_s: float,
        memory_mib: int = 1024,
        environment: Sequence[str] = (),
    ) -> None:
        """
        Args:
            build_verifiers: Returns the verifiers by task. Called in the child, so it must be importable there.
            timeout_s: Hard deadline of one response in seconds, precise to about 0.1 s.
            memory_mib: Memory that the child may take beyond what it holds after its start, in MiB.
            environment: Names of environment variables that the child keeps besides those known to be harmless.
        """
        self._start = functools.partial(_start_child, build_verifiers, memory_mib, tuple(environment))
        self._timeout_s = timeout_s
        self._pool: ProcessPool | None = None

    def judge(self, task: str, texts: Sequence[str], answer: str) -> list[Judgement]:
        """Judge responses to one prompt, in order.

        All responses are sent at once. Each has its own deadline, which starts when the child takes it up. The overhead
        is 0.08 ms a response.

        Raises:
            EngineError: The child cannot be started, or repeatedly dies between responses.
        """
        return self._in_order(task, _judge_in_child, [(task, text, answer) for text in texts])

    def answers(self, task: str, texts: Sequence[str]) -> list[Extraction]:
        """Extract the answer of each response, in order, with deadlines as in `judge`.

        The task's verifier must implement `GivesAnswer`.

        Raises:
            EngineError: As for `judge`.
        """
        found = self._in_order(task, _answer_in_child, [(task, text) for text in texts])
        return [
            Extraction(answer=None, problem=each.problem or "Timeout") if isinstance(each, Judgement) else each
            for each in found
        ]

    def compare(self, task: str, answer: str, others: Sequence[str]) -> Comparison:
        """Compare an extracted answer with others, under one deadline.

        The task's verifier must implement `ComparesAnswers`.

        Raises:
            EngineError: As for `judge`.
        """
        [found] = self._in_order(task, _compare_in_child, [(task, answer, *others)])
        if isinstance(found, Judgement):
            return Comparison(is_same=(False,) * len(others), problem=found.problem or "Timeout")
        assert isinstance(found, Comparison)
        return found

    def close(self) -> None:
        """Kill the child. A later call starts a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()  # unlimited wait: the pool kills its child and waits for its own threads

    def _in_order(self, task: str, call: Callable[..., Any], arguments: Sequence[tuple[str, ...]]) -> list[Any]:
        """Return the results of calls in the child, with a `Judgement` for a call that killed it.

        A child that breaks between two calls is replaced once.
        """
        results: list[Any] = []
        breaks = 0
        while len(results) < len(arguments):
            try:
                for future in self._send(call, arguments[len(results) :]):
                    results.append(self._outcome_of(future))
            except RuntimeError as error:  # pebble's pool broke, also when its child is killed between two responses
                self.close()
                breaks += 1
                if breaks > 1:
                    raise EngineError(f"the verifier process of task {task!r} keeps dying: {error}") from error
        return results

    def _send(self, call: Callable[..., Any], arguments: Sequence[tuple[str, ...]]) -> list[Future[Any]]:
        if self._pool is None:
            # Spawned, not forked: a fork would copy the locks of the parent's threads in an arbitrary state.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(max_workers=1, initializer=self._start, context=context)
        return [self._pool.schedule(call, args=each, timeout=self._timeout_s) for each in arguments]

    def _outcome_of(self, future: Future[Any]) -> Any:
        try:
            return future.result(timeout=self._timeout_s + _CHILD_START_TIMEOUT_S)
        except ProcessExpired as error:
            return Judgement(
                reward=0.0,
                outcome=Outcome.ERROR,
                elapsed_s=0.0,
                problem=f"{type(error).__name__}: exit code {error.exitcode}",
            )
        except TimeoutError as error:
            if not future.done():
                raise BrokenProcessPool("its child started no response") from error
            return Judgement(reward=0.0, outcome=Outcome.TIMEOUT, elapsed_s=self._timeout_s)


_verifiers: Mapping[str, Verifier] = {}  # set in the child


def _start_child(build_verifiers: BuildVerifiers, memory_mib: int, environment: tuple[str, ...]) -> None:
    global _verifiers
    keep_environment(environment)
    _verifiers = build_verifiers()
    for verifier in _verifiers.values():
        if isinstance(verifier, WarmsUp):
            verifier.warm_up()
    limit_memory(memory_mib)


def _judge_in_child(task: str, text: str, answer: str) -> Judgement:
    start = time.perf_counter()
    try:
        verdict = _verifiers[task].verify(text, answer)
    except BaseException as error:  # noqa: BLE001 - a verifier's failure is an outcome, even `sys.exit`
        return Judgement(
            reward=0.0,
            outcome=Outcome.ERROR,
            elapsed_s=time.perf_counter() - start,
            problem=f"{type(error).__name__}: {error}",
        )
    elapsed_s = time.perf_counter() - start
    if not math.isfinite(verdict.reward):
        return Judgement(
            reward=0.0, outcome=Outcome.ERROR, elapsed_s=elapsed_s, problem=f"NonFiniteReward: {verdict.reward}"
        )
    return Judgement(reward=float(verdict.reward), outcome=verdict.outcome, elapsed_s=elapsed_s)


def _answer_in_child(task: str, text: str) -> Extraction:
    verifier = _verifiers[task]
    assert isinstance(verifier, GivesAnswer)
    try:
        return Extraction(answer=verifier.answer_of(text))
    except BaseException as error:  # noqa: BLE001 - as in `_judge_in_child`
        return Extraction(answer=None, problem=f"{type(error).__name__}: {error}")


def _compare_in_child(task: str, answer: str, *others: str) -> Comparison:
    verifier = _verifiers[task]
    assert isinstance(verifier, ComparesAnswers)
    try:
        return Comparison(is_same=tuple(verifier.is_same_answer(answer, other) for other in others))
    except BaseException as error:  # noqa: BLE001 - as in `_judge_in_child`
        return Comparison(is_same=(False,) * len(others), problem=f"{type(error).__name__}: {error}")
