"""Verifier worker: decodes the responses of a group and judges each one under a hard deadline."""

from __future__ import annotations

import logging
import queue
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from actors.messages import VerifierResult
from actors.verifier.killable_process import BuildVerifiers, Comparison, Extraction, Judge, Judgement
from rlad.contracts import Columns, Outcome, RolloutGroup, Verdicts
from rlad.errors import ConfigError, EngineError
from rlad.evaluation.votes import merge_votes
from rlad.models.locations import fetch_model
from rlad.tokenizers.decoding import ResponseDecoder
from rlad.verifiers import ComparesAnswers, GivesAnswer, Verifier, VerifierConfig, build_verifier
from rlad.verifiers.response_tags import TaggedVerifierConfig, with_default_tags

if TYPE_CHECKING:  # with it would come all models of the configuration, which an actor has no use for
    pass

logger = logging.getLogger(__name__)

# Deadline for a judge to become free, for callers beyond the number of judges.
_JUDGE_TIMEOUT_S = 600.0
# Length of a verifier's words on a response that it failed on.
_PROBLEM_CHARACTERS = 500
# A comparison that fails or times out takes up to one deadline, so a group stops comparing after as many.
_FAILED_COMPARISONS = 2


class VerifierWorker:
    """Actor with one or more judges. Takes as many groups at once as it has judge processes."""

    def __init__(
        self,
        *,
        build_verifiers: BuildVerifiers,
        tokenizer_path: str,
        processes: int,
        timeout_s: float,
        memory_mib: int,
        environment: Sequence[str] = (),
        tagged: Mapping[str, TaggedVerifierConfig] | None = None,
    ) -> None:
        """
        Args:
            build_verifiers: Returns the verifiers by task.
            tokenizer_path: Model directory whose `tokenizer.json` decodes the responses.
            processes: Number of judges.
            timeout_s, memory_mib, environment: As for `Judge`.
            tagged: Settings of the verifiers that look at tags, by task.

        Raises:
            ConfigError: A verifier cannot be built, or the model directory has no `tokenizer.json`.
        """
        # Spawned children import the file that `__main__.__file__` names. Here that is Ray's worker program, which
        # would import all of Ray without need.
        sys.modules["__main__"].__dict__.pop("__file__", None)
        verifiers = build_verifiers()  # reports a faulty verifier here; a child could only die of it
        self._tasks = sorted(verifiers)
        self._giving_answers = {task for task, verifier in verifiers.items() if isinstance(verifier, GivesAnswer)}
        self._comparing = {task for task, verifier in verifiers.items() if isinstance(verifier, ComparesAnswers)}
        self._tagged = dict(tagged or {})
        tags = {tag for config in self._tagged.values() for tag in config.tags}
        self._decoder = ResponseDecoder(load_fast_tokenizer(tokenizer_path), tags)
        self._judges: queue.SimpleQueue[Judge] = queue.SimpleQueue()
        for _ in range(processes):
            self._judges.put(
                Judge(build_verifiers, timeout_s=timeout_s, memory_mib=memory_mib, environment=environment)
            )
        self._logged: set[tuple[str, str]] = set()

    def verify(self, columns: Columns, with_texts: bool = False) -> VerifierResult:
        """Judge a group.

        A truncated response gets reward 0 and the outcome `UNPARSEABLE` without being judged: it did not end, so it
        gives no answer. Wrong answers that mean the same to the verifier are returned as one text, so that they are one
        vote.

        Args:
            columns: Columns of a `RolloutGroup`.
            with_texts: Also return texts and answers, for evaluation.

        Raises:
            ConfigError: The group's task has no verifier.
            EngineError: The verifier process keeps dying.
        """
        start = time.perf_counter()
        group = RolloutGroup.from_columns(columns)
        if group.task not in self._tasks:
            raise ConfigError(
                f"prompt {group.prompt_id!r} has task {group.task!r}, which has no verifier; verifiers exist for: "
                f"{', '.join(self._tasks)}"
            )
        judgements = [Judgement(reward=0.0, outcome=Outcome.UNPARSEABLE, elapsed_s=0.0)] * group.num_responses
        ended = np.flatnonzero(~group.is_truncated).tolist()
        texts = self._decoded(group, ended)
        if (tagged := self._tagged.get(group.task)) is not None:
            texts = [with_default_tags(text, tagged) for text in texts]
        answers: list[Extraction] | None = None
        comparisons: list[Comparison] = []
        judge = self._judge()
        try:
            for index, judgement in zip(ended, judge.judge(group.task, texts, group.answer), strict=True):
                judgements[index] = judgement
            if with_texts and group.task in self._giving_answers:
                answers = [Extraction(answer=None)] * group.num_responses
                # Only responses that the verifier could parse take part in the majority vote.
                understood = [
                    place
                    for place, index in enumerate(ended)
                    if judgements[index].outcome in (Outcome.CORRECT, Outcome.WRONG)
                ]
                for place, extraction in zip(
                    understood, judge.answers(group.task, [texts[place] for place in understood]), strict=True
                ):
                    answers[ended[place]] = extraction
                if group.task in self._comparing:
                    comparisons = _merge_wrong_answers(judge, group.task, judgements, answers)
        finally:
            self._judges.put(judge)
        self._log_problems(group, [*judgements, *(answers or []), *comparisons])
        verdicts = Verdicts(
            uid=group.uid,
            attempt=group.attempt,
            rewards=np.array([each.reward for each in judgements], np.float32),
            outcomes=np.array([each.outcome for each in judgements], np.uint8),
            elapsed_s=np.array([each.elapsed_s for each in judgements], np.float32),
        )
        return VerifierResult(
            verdicts=verdicts,
            elapsed_s=time.perf_counter() - start,
            texts=tuple(self._decoded(group, range(group.num_responses))) if with_texts else None,
            answers=tuple(each.answer for each in answers) if answers is not None else None,
            problems=tuple(_shortened(each.problem) for each in judgements)
            if any(each.problem for each in judgements)
            else (),
        )

    def _judge(self) -> Judge:
        """Take a judge. There are as many as groups that the worker takes at once.

        Raises:
            EngineError: None became free.
        """
        try:
            return self._judges.get(timeout=_JUDGE_TIMEOUT_S)
        except queue.Empty as error:
            raise EngineError(f"no judge of the verifier worker became free within {_JUDGE_TIMEOUT_S:g} s") from error

    def _decoded(self, group: RolloutGroup, indices: Iterable[int]) -> list[str]:
        return self._decoder.decode([group.response_ids[group.response(index)].tolist() for index in indices])

    def _log_problems(self, group: RolloutGroup, results: Iterable[Judgement | Extraction | Comparison]) -> None:
        """Log each kind of problem once: a broken verifier fails on thousands of responses in the same way."""
        for result in results:
            if result.problem is None:
                continue
            kind = (group.task, result.problem.partition(":")[0])
            if kind not in self._logged:
                self._logged.add(kind)
                logger.warning("task=%s prompt=%s verifier_problem=%r", group.task, group.prompt_id, result.problem)


def _shortened(problem: str | None) -> str | None:
    return None if problem is None else problem[:_PROBLEM_CHARACTERS]


def _merge_wrong_answers(
    judge: Judge, task: str, judgements: Sequence[Judgement], answers: list[Extraction]
) -> list[Comparison]:
    """Give wrong answers that mean the same one text, in place, and return the comparisons that this took.

    Correct answers vote together anyway. After two failed comparisons the remaining answers are compared as text.
    """
    wrong = [index for index, judgement in enumerate(judgements) if judgement.outcome is Outcome.WRONG]
    comparisons: list[Comparison] = []

    def compare(answer: str, others: Sequence[str]) -> Sequence[bool]:
        if sum(comparison.problem is not None for comparison in comparisons) >= _FAILED_COMPARISONS:
            return [False] * len(others)
        comparisons.append(judge.compare(task, answer, others))
        return comparisons[-1].is_same

    for index, answer in zip(wrong, merge_votes([answers[index].answer for index in wrong], compare), strict=True):
        answers[index] = replace(answers[index], answer=answer)
    return comparisons


def load_fast_tokenizer(model_path: str) -> Tokenizer:
    """Load the tokenizer that decodes responses, from the location of a model.

    Raises:
        ConfigError: The model has no `tokenizer.json`.
    """
    path = fetch_model(model_path, weights=False) / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: save the model's fast tokenizer there with "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`"
        )
    return Tokenizer.from_file(str(path))


def tagged_verifiers(configs: Mapping[str, VerifierConfig]) -> dict[str, TaggedVerifierConfig]:
    """Return the settings of the verifiers that look at tags, by task."""
    return {task: config for task, config in configs.items() if isinstance(config, TaggedVerifierConfig)}


def build_verifiers(configs: Mapping[str, VerifierConfig]) -> dict[str, Verifier]:
    """Build the verifiers of a run, by task."""
    return {task: build_verifier(config) for task, config in configs.items()}
