"""Judging responses in a child process that is killed when a response takes too long.

Verifiers run other people's parsers on a model's text: a regular expression may backtrack for hours and hold the interpreter, so nothing less than a
process that can be killed keeps a deadline. The child imports verifiers and nothing of the cluster or the engines.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from pebble import ProcessExpired, ProcessPool

from rlad.contracts import Outcome
from rlad.errors import EngineError
from rlad.verifiers import GivesAnswer, Verifier

BuildVerifiers = Callable[[], Mapping[str, Verifier]]

# A child that has not even begun a response after this long, beyond the response's own deadline, never will. Importing verifiers takes seconds at most.
_CHILD_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What came of one response.

    Attributes:
        problem: why the outcome is an error, for the log: the kind, then a colon and the details.
    """

    reward: float
    outcome: Outcome
    elapsed_s: float
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """A response's answer; None where it gives none, or where taking it out failed or took too long: `problem` then says so, for the log."""

    answer: str | None
    problem: str | None = None


class Judge:
    """One child process. Not thread-safe: a judge judges one group at a time."""

    def __init__(self, build_verifiers: BuildVerifiers, *, timeout_s: float) -> None:
        """
        Args:
            build_verifiers: gives the verifiers by task; called in the child, so it must be importable there.
            timeout_s: hard deadline of one response, precise to about 0.1 s.
        """
        self._build_verifiers = build_verifiers
        self._timeout_s = timeout_s
        self._pool: ProcessPool | None = None

    def judge(self, task: str, texts: Sequence[str], answer: str) -> list[Judgement]:
        """Judge responses to one prompt, in order.

        All are sent at once and each has its own deadline, which runs from the moment the child takes it up. That costs 0.08 ms a response.

        Raises:
            EngineError: the child cannot be started, or dies between responses again and again.
        """
        return self._in_order(task, _judge_in_child, [(task, text, answer) for text in texts])

    def answers(self, task: str, texts: Sequence[str]) -> list[Extraction]:
        """What each response gives as its answer, in order, with deadlines as in `judge`. The task's verifier must be one that `GivesAnswer`.

        Raises:
            EngineError: as `judge`.
        """
        found = self._in_order(task, _answer_in_child, [(task, text) for text in texts])
        return [
            Extraction(answer=None, problem=each.problem or "Timeout") if isinstance(each, Judgement) else each
            for each in found
        ]

    def close(self) -> None:
        """Kill the child. A later `judge` starts another."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()

    def _in_order(self, task: str, call: Callable[..., Any], arguments: Sequence[tuple[str, ...]]) -> list[Any]:
        """The results of calls in the child, which is replaced once where it breaks between two of them; a `Judgement` for a call that it died of."""
        results: list[Any] = []
        breaks = 0
        while len(results) < len(arguments):
            try:
                for future in self._send(call, arguments[len(results) :]):
                    results.append(self._outcome_of(future))
            except (
                RuntimeError
            ) as error:  # pebble's pool broke, which it also does when its child is killed between two responses
                self.close()
                breaks += 1
                if breaks > 1:
                    raise EngineError(f"the verifier process of task {task!r} does not stay up: {error}") from error
        return results

    def _send(self, call: Callable[..., Any], arguments: Sequence[tuple[str, ...]]) -> list[Future[Any]]:
        if self._pool is None:
            # Spawned, not forked: the parent has threads whose locks a fork would copy in any state.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(
                max_workers=1, initializer=_start_child, initargs=(self._build_verifiers,), context=context
            )
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
                raise BrokenProcessPool("its child took up no response") from error
            return Judgement(reward=0.0, outcome=Outcome.TIMEOUT, elapsed_s=self._timeout_s)


_verifiers: Mapping[str, Verifier] = {}  # of the child


def _start_child(build_verifiers: BuildVerifiers) -> None:
    global _verifiers
    _verifiers = build_verifiers()


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
    except BaseException as error:  # noqa: BLE001 - as in judging
        return Extraction(answer=None, problem=f"{type(error).__name__}: {error}")
