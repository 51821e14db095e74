"""A driver's side of a teacher: what it has groups scored by, wherever that is.

Group data goes from the object store to a replica and scores go back into it; the driver passes references.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Protocol

from actors.experience.group import ColumnsRef
from actors.remote_errors import translated
from actors.teacher.quota import TeacherStats
from actors.teacher.replica import Receipt
from rlad.contracts import TeacherSupport
from rlad.errors import EngineError
from rlad.teacher.retries import retry_until
from rlad.teacher.wire_format import TeacherIdentity

# Deadline of questions that a replica answers at once.
CONTROL_TIMEOUT_S = 60.0


class Teacher(Protocol):
    """Scores finished groups: an application on this Ray cluster, or one elsewhere."""

    @property
    def teacher(self) -> str:
        """Fingerprint of its weights and tokenizer."""
        ...

    async def score(self, group_ref: ColumnsRef, *, num_tokens: int, support: TeacherSupport = None) -> ColumnsRef:
        """Have a group scored.

        Args:
            group_ref: reference to the columns of a `RolloutGroup`.
            num_tokens: its response tokens.
            support: what to score beside the sampled tokens; nothing costs nothing.

        Returns:
            Reference to the columns of its `TeacherScores`, owned by this process: it outlives whoever made them.

        Raises:
            DeadlineError: not scored in time, waiting for the client's quota included.
            WorkerLostError: replicas died, or the connection was lost, in every attempt.
            VocabularyMismatchError, EngineError: the teacher refused the group or failed on it; not tried again.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherClient:
    """A `Teacher` that is a Serve deployment of this Ray cluster.

    Attributes:
        handle: of the deployment.
        app_name: names the teacher in errors.
        teacher: fingerprint of its weights and tokenizer; scores of another model are refused.
        tokenizer_fingerprint: of the student, sent with every group.
        client: who asks; clients of one name share one quota.
        timeout_s: deadline of scoring one group, retries included.
        max_retries: after a replica died.
    """

    handle: Any
    app_name: str
    teacher: str
    tokenizer_fingerprint: str
    client: str
    timeout_s: float
    max_retries: int
    _scoring: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scoring", scoring_calls(self.handle))

    async def score(self, group_ref: ColumnsRef, *, num_tokens: int, support: TeacherSupport = None) -> ColumnsRef:
        """As `Teacher.score` says."""
        return await retry_until(
            lambda: self._score_once(group_ref, num_tokens, support),
            max_retries=self.max_retries,
            timeout_s=self.timeout_s,
            what=f"teacher {self.app_name!r} did not score a group of {num_tokens} tokens",
        )

    async def stats(self) -> TeacherStats:
        """Sums over the replicas that run now; those that died have taken their counts along."""
        return await ask_stats(self.handle, who=f"teacher {self.app_name!r}")

    async def _score_once(self, group_ref: ColumnsRef, num_tokens: int, support: TeacherSupport) -> ColumnsRef:
        who = f"teacher {self.app_name!r}"
        scores_ref, receipt = await score_once(
            self._scoring, group_ref, self.tokenizer_fingerprint, support, self.client, who=who
        )
        if receipt.num_tokens != num_tokens:
            raise EngineError(f"{who} scored {receipt.num_tokens} tokens of a group that was said to have {num_tokens}")
        require_same_model(receipt.teacher, self.teacher, who=who)
        return scores_ref


def scoring_calls(handle: Any) -> Any:
    """A deployment's `score`, to be called as often as one likes: a handle with other options costs as much to make as a call."""
    return handle.options(method_name="score", stream=True)


async def score_once(
    scoring: Any, group_ref: ColumnsRef, tokenizer_fingerprint: str, support: TeacherSupport, client: str, *, who: str
) -> tuple[ColumnsRef, Receipt]:
    """One try at a Serve deployment of `TeacherServer`, without a deadline: the scores by reference, unfetched, and what was scored.

    Args:
        scoring: what `scoring_calls` made of its handle.

    Raises:
        QuotaError, WorkerLostError: another try may succeed.
        VocabularyMismatchError, DeadlineError, EngineError: as `TeacherServer.score`.
    """
    response = scoring.remote([group_ref], tokenizer_fingerprint, support, client)
    try:
        with translated(who=who):
            return await _scores_and_receipt(response)
    except asyncio.CancelledError:
        response.cancel()
        raise


async def ask_identity(handle: Any, *, who: str, max_retries: int = 0) -> TeacherIdentity:
    """What a deployed teacher is.

    Raises:
        DeadlineError, WorkerLostError, EngineError: no replica answers.
    """

    async def ask() -> TeacherIdentity:
        with translated(who=who):
            identity: TeacherIdentity = await handle.identity.remote()
        return identity

    return await retry_until(
        ask, max_retries=max_retries, timeout_s=CONTROL_TIMEOUT_S, what=f"{who} did not say what it is"
    )


async def ask_stats(handle: Any, *, who: str) -> TeacherStats:
    """Sums over the replicas of a deployed teacher."""
    responses = handle.broadcast("stats").results_async(timeout_s=CONTROL_TIMEOUT_S)
    with translated(who=who):
        replicas: list[TeacherStats] = await responses
    return reduce(add, replicas, TeacherStats())


def require_same_model(came: str, expected: str, *, who: str) -> None:
    """
    Raises:
        EngineError: scores are of another model than the run began with.
    """
    if came != expected:
        raise EngineError(
            f"{who} is now another model ({came}, before {expected}): it was deployed anew, and scores of two models do not mix"
        )


async def _scores_and_receipt(response: Any) -> tuple[ColumnsRef, Receipt]:
    """The first item as a reference, unfetched, and the second by value. A call that failed has one item: the error."""
    items = await response._to_object_ref_gen()  # Serve's way to results by reference; `async for` would fetch them
    scores_ref = await anext(items)
    try:
        receipt_ref = await anext(items)
    except StopAsyncIteration:
        await scores_ref  # raises what ended the call
        raise EngineError("the teacher ended a call without a receipt") from None
    return scores_ref, await receipt_ref
