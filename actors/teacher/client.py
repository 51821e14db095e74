"""Driver-side clients of teachers.

Group data travels from the object store to a replica, and the scores travel back. The driver only passes references.
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
from rlad.contracts import Array, TeacherSupport
from rlad.errors import EngineError
from rlad.teacher.retries import retry_until
from rlad.teacher.wire_format import TeacherIdentity

# Deadline of calls that a replica answers at once.
CONTROL_TIMEOUT_S = 60.0


class Teacher(Protocol):
    """Teacher that scores finished groups, on this Ray cluster or elsewhere."""

    @property
    def teacher(self) -> str:
        """Fingerprint of the teacher's weights and tokenizer."""
        ...

    async def score(
        self,
        group_ref: ColumnsRef,
        *,
        num_tokens: int,
        support: TeacherSupport = None,
        prompt_ids: Array | None = None,
    ) -> ColumnsRef:
        """Score a group.

        Args:
            group_ref: Reference to the columns of a `RolloutGroup`.
            num_tokens: Number of response tokens of the group.
            support: Tokens to score in addition to the sampled ones. None is the cheapest.
            prompt_ids: Prompt behind which the tokens are scored, int32 [P]; None means that of the group.

        Returns:
            Reference to the columns of the group's `TeacherScores`. This process owns the object, so that it outlives
            the replica that created it.

        Raises:
            DeadlineError: The group was not scored in time, including the time spent waiting for the client's quota.
            WorkerLostError: A replica died, or the connection was lost, in every attempt.
            VocabularyMismatchError, EngineError: The teacher refused the group or failed on it. Not retried.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherClient:
    """`Teacher` that is a Serve deployment of this Ray cluster.

    Attributes:
        handle: Handle of the deployment.
        app_name: Name of the application, used in error messages.
        teacher: Fingerprint of the teacher's weights and tokenizer. Scores of another model are rejected.
        tokenizer_fingerprint: Fingerprint of the student's tokenizer, sent with every group.
        client: Name of this client. Clients of the same name share one quota.
        timeout_s: Deadline for one group in seconds, including retries.
        max_retries: Number of retries after the loss of a replica.
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

    async def score(
        self,
        group_ref: ColumnsRef,
        *,
        num_tokens: int,
        support: TeacherSupport = None,
        prompt_ids: Array | None = None,
    ) -> ColumnsRef:
        """Score a group, see `Teacher.score`."""
        return await retry_until(
            lambda: self._score_once(group_ref, num_tokens, support, prompt_ids),
            max_retries=self.max_retries,
            timeout_s=self.timeout_s,
            failure=f"teacher {self.app_name!r} did not score a group of {num_tokens} tokens",
        )

    async def stats(self) -> TeacherStats:
        """Return statistics summed over the running replicas. Counts of replicas that died are lost."""
        return await ask_stats(self.handle, who=f"teacher {self.app_name!r}")

    async def _score_once(
        self, group_ref: ColumnsRef, num_tokens: int, support: TeacherSupport, prompt_ids: Array | None
    ) -> ColumnsRef:
        who = f"teacher {self.app_name!r}"
        scores_ref, receipt = await score_once(
            self._scoring, group_ref, self.tokenizer_fingerprint, support, self.client, who=who, prompt_ids=prompt_ids
        )
        if receipt.num_tokens != num_tokens:
            raise EngineError(f"{who} scored {receipt.num_tokens} tokens of a group; expected {num_tokens}")
        require_same_model(receipt.teacher, self.teacher, who=who)
        return scores_ref


def scoring_calls(handle: Any) -> Any:
    """Return a handle for streaming calls of a deployment's `score`. Reuse it: creating one costs as much as a call."""
    return handle.options(method_name="score", stream=True)


async def score_once(
    scoring: Any,
    group_ref: ColumnsRef,
    tokenizer_fingerprint: str,
    support: TeacherSupport,
    client: str,
    *,
    who: str,
    prompt_ids: Array | None = None,
) -> tuple[ColumnsRef, Receipt]:
    """Score a group at a Serve deployment of `TeacherServer`, in one attempt and without a deadline.

    Args:
        scoring: Handle returned by `scoring_calls`.
        group_ref: Reference to the columns of a `RolloutGroup`.
        tokenizer_fingerprint: Fingerprint of the tokenizer of the model that sampled the group.
        support: Tokens to score in addition to the sampled ones.
        client: Name of the client, for quotas.
        who: Name of the teacher in error messages.
        prompt_ids: Prompt behind which the tokens are scored, int32 [P]; None means that of the group.

    Returns:
        Reference to the columns of the scores, which are not fetched, and the receipt.

    Raises:
        QuotaError, WorkerLostError: Another attempt may succeed.
        VocabularyMismatchError, DeadlineError, EngineError: See `TeacherServer.score`.
    """
    response = scoring.remote([group_ref], tokenizer_fingerprint, support, client, prompt_ids)
    try:
        with translated(who=who):
            return await _scores_and_receipt(response)
    except asyncio.CancelledError:
        response.cancel()
        raise


async def ask_identity(handle: Any, *, who: str, max_retries: int = 0) -> TeacherIdentity:
    """Return the identity of a deployed teacher.

    Raises:
        DeadlineError, WorkerLostError, EngineError: No replica answers.
    """

    async def ask() -> TeacherIdentity:
        with translated(who=who):
            identity: TeacherIdentity = await handle.identity.remote()  # unlimited wait: `retry_until` has the deadline
        return identity

    return await retry_until(
        ask, max_retries=max_retries, timeout_s=CONTROL_TIMEOUT_S, failure=f"{who} did not report its identity"
    )


async def ask_stats(handle: Any, *, who: str) -> TeacherStats:
    """Return statistics of a deployed teacher, summed over its replicas."""
    responses = handle.broadcast("stats").results_async(timeout_s=CONTROL_TIMEOUT_S)
    with translated(who=who):
        replicas: list[TeacherStats] = await responses
    return reduce(add, replicas, TeacherStats())


def require_same_model(actual: str, expected: str, *, who: str) -> None:
    """Check that scores come from the model with which the run began.

    Args:
        actual: Fingerprint of the model that scored.
        expected: Fingerprint of the model at the start of the run.
        who: Name of the teacher in the error message.

    Raises:
        EngineError: The fingerprints differ.
    """
    if actual != expected:
        raise EngineError(
            f"{who} serves another model ({actual}) than at the start of the run ({expected}): it was redeployed, and "
            "a run cannot mix scores of two models; deploy the former model again or start a new run"
        )


async def _scores_and_receipt(response: Any) -> tuple[ColumnsRef, Receipt]:
    """Return the first item as a reference and the second by value. A failed call has a single item, the error."""
    items = await response._to_object_ref_gen()  # `async for` would fetch the results
    scores_ref = await anext(items)
    try:
        receipt_ref = await anext(items)
    except StopAsyncIteration:
        await scores_ref  # raises the error that ended the call
        raise EngineError("the teacher ended a scoring call without a receipt") from None
    return scores_ref, await receipt_ref
