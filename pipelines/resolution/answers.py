"""Trial of the prompts' answers: each answer is judged by its verifier, as a response that repeats it.

A verifier that cannot read an expected answer gives every response the outcome `error` and no reward, so such a set is
refused before the run starts.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from actors.verifier.killable_process import Judge
from actors.verifier.worker import build_verifiers
from pipelines.resolution.prompts import EncodedPrompts
from rlad.contracts import Outcome
from rlad.errors import ConfigError, RladError
from rlad.verifiers import RewardModelVerifierConfig, StatesAnswer, VerifierConfig, build_verifier

TRIAL_S = 4.0
"""Seconds for the answers of one task. What cannot be tried in this time is left out, and the plan says so."""

# Share of unreadable answers above which a set is refused.
_MAX_UNREADABLE = 0.05
_NAMED = 4
_SHOWN = 160
# Verifiers whose time is bounded, so that no process has to be started for them.
_BOUNDED = ("knights_knaves", "countdown", "multiple_choice")
_JUDGE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """Result of trying the answers of one task.

    Attributes:
        prompts: Name of the prompt set, `training` or `evaluation`.
        task: Name of the task.
        verifier: Name of its verifier.
        answers: Number of answers of the task.
        tried: Number of them that were tried.
        unreadable: Location, and reason, of each answer that the verifier cannot read.
    """

    prompts: str
    task: str
    verifier: str
    answers: int
    tried: int
    unreadable: Sequence[tuple[str, str]] = field(default_factory=list)

    @property
    def level(self) -> Literal["ok", "warning", "error"]:
        if not self.unreadable:
            return "ok"
        return "error" if len(self.unreadable) > _MAX_UNREADABLE * self.tried else "warning"

    @property
    def message(self) -> str:
        """The result with rows and remedy."""
        amount = (
            f"all {self.answers} answers" if self.tried == self.answers else f"{self.tried} of {self.answers} answers"
        )
        tried = f"{self.prompts} prompts of task {self.task}: {amount} tried with verifier {self.verifier}"
        if not self.unreadable:
            return f"{tried}, each earns the reward"
        named = "; ".join(f"{where}: {reason}" for where, reason in self.unreadable[:_NAMED])
        more = f"; and {len(self.unreadable) - _NAMED} more" if len(self.unreadable) > _NAMED else ""
        return (
            f"{tried}, {len(self.unreadable)} cannot earn a reward. {named}{more}. Correct the answers, name their "
            f"column with `columns: {{answer: ...}}`, or choose another verifier in `verifiers.{self.task}`"
        )


def try_answers(
    prompts: Mapping[str, EncodedPrompts],
    verifiers: Mapping[str, VerifierConfig],
    *,
    seed: int,
    budget_s: float = TRIAL_S,
) -> Iterator[TrialResult]:
    """Judge the prompts' own answers, task by task, in an order that the seed determines.

    Args:
        prompts: Prompt sets by name.
        verifiers: Verifier settings by task. Reward models read no answers and are left out.
        seed: Seed of the order, and so of the sample if there is no time for all.
        budget_s: Seconds for each task of a set.
    """
    for task in sorted({record.task for each in prompts.values() for record in each.records}):
        config = verifiers[task]
        if isinstance(config, RewardModelVerifierConfig):
            continue
        try:
            made = _Trial(task, config)
        except ConfigError:  # it may exist only on the nodes; `rlad plan` reports verifiers that cannot be built here
            continue
        with closing(made) as trial:
            for name, each in prompts.items():
                indices = [index for index, record in enumerate(each.records) if record.task == task]
                random.Random(seed).shuffle(indices)
                if indices:
                    yield _try_task(name, each, trial, indices, budget_s)


class _Trial:
    """Verifier of one task, in a killable process unless its time is bounded."""

    def __init__(self, task: str, config: VerifierConfig) -> None:
        self.task, self.verifier_name = task, config.name
        self._verifier = build_verifier(config)
        self._judge = (
            None
            if config.name in _BOUNDED
            else Judge(functools.partial(build_verifiers, {task: config}), timeout_s=_JUDGE_TIMEOUT_S)
        )

    def warm_up(self, answer: str) -> None:
        """Start the process, outside of the time budget."""
        self._outcome("", answer)

    def problem_of(self, answer: str) -> str | None:
        """Return the reason why a response with this answer earns no reward; None if it does.

        Of a verifier that cannot state answers, only errors and timeouts count.
        """
        states = isinstance(self._verifier, StatesAnswer)
        response = self._verifier.response_for(answer) if isinstance(self._verifier, StatesAnswer) else ""
        outcome, problem = self._outcome(response, answer)
        if outcome is Outcome.ERROR:
            return _shortened(problem or "the verifier failed")
        if outcome is Outcome.TIMEOUT:
            return f"no verdict within {_JUDGE_TIMEOUT_S:g} s on {_shortened(answer)!r}"
        if states and outcome is not Outcome.CORRECT:
            return f"{_shortened(answer)!r} is not recognised in a response that repeats it"
        return None

    def close(self) -> None:
        if self._judge is not None:
            self._judge.close()

    def _outcome(self, response: str, answer: str) -> tuple[Outcome, str | None]:
        if self._judge is not None:
            [judgement] = self._judge.judge(self.task, [response], answer)
            return judgement.outcome, (judgement.problem or "").partition(": ")[2]
        try:
            return self._verifier.verify(response, answer).outcome, None
        except RladError as error:  # the answer is malformed
            return Outcome.ERROR, str(error)


def _try_task(
    name: str, prompts: EncodedPrompts, trial: _Trial, indices: Sequence[int], budget_s: float
) -> TrialResult:
    trial.warm_up(prompts.records[indices[0]].answer)
    start, tried = time.monotonic(), 0
    problems: dict[str, str | None] = {}
    unreadable: list[int] = []
    for index in indices:
        if tried and time.monotonic() - start > budget_s:
            break
        answer = prompts.records[index].answer
        if answer not in problems:
            problems[answer] = trial.problem_of(answer)
        tried += 1
        if problems[answer] is not None:
            unreadable.append(index)
    return TrialResult(
        prompts=name,
        task=trial.task,
        verifier=trial.verifier_name,
        answers=len(indices),
        tried=tried,
        unreadable=[
            (_where(prompts, index), problems[prompts.records[index].answer] or "") for index in sorted(unreadable)
        ],
    )


def _where(prompts: EncodedPrompts, index: int) -> str:
    return prompts.locations[index] if prompts.locations else f"prompt {prompts.records[index].id}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
