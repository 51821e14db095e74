"""Teacher service outside of this Ray cluster, reached over HTTP.

A courier actor sends groups from the object store to the service and puts the scores back. The driver only passes
references, as for any other teacher. The token is an argument of every call and not of the actor's constructor: Ray
stores constructor arguments.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from pydantic import SecretStr

from actors.experience.group import ColumnsRef
from actors.remote_errors import translated
from actors.teacher.client import CONTROL_TIMEOUT_S, require_same_model
from actors.teacher.deployment import require_fingerprint, require_tokenizer
from actors.teacher.replica import Receipt
from rlad.config import RemoteTeacherConfig
from rlad.contracts import Array, Columns, RolloutGroup, TeacherSupport
from rlad.errors import EngineError, RladError
from rlad.teacher.http_client import TeacherHttpClient, read_token
from rlad.teacher.retries import retry_until
from rlad.teacher.wire_format import TeacherIdentity


class TeacherCourier:
    """Asynchronous actor around a `TeacherHttpClient`.

    Each call makes one attempt. The driver retries, since it also detects the death of this actor.
    """

    def __init__(self, url: str, *, client: str, tokenizer: str, timeout_s: float) -> None:
        self._settings: dict[str, Any] = {
            "url": url,
            "client": client,
            "tokenizer": tokenizer,
            "timeout_s": timeout_s,
            "max_retries": 0,
        }
        self._http: TeacherHttpClient | None = None

    async def identity(self, token: SecretStr) -> TeacherIdentity:
        """Return the identity of the teacher."""
        return await self._client(token).identity()

    @ray.method(num_returns=2)
    async def score(
        self, columns: Columns, support: TeacherSupport, token: SecretStr, prompt_ids: Array | None = None
    ) -> tuple[Columns, Receipt]:
        """Score a group, behind another prompt if `prompt_ids` is given.

        The receipt is a separate return value, so that the caller need not fetch the scores.

        Returns:
            Columns of the group's `TeacherScores`, and the receipt.
        """
        scores = await self._client(token).score(RolloutGroup.from_columns(columns).behind(prompt_ids), support)
        return scores.to_columns(), Receipt(num_tokens=len(scores.logprobs), teacher=scores.teacher)

    def _client(self, token: SecretStr) -> TeacherHttpClient:
        if self._http is None:
            self._http = TeacherHttpClient(token=token.get_secret_value(), **self._settings)
        return self._http


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTeacher:
    """`Teacher` reached through a courier actor. The caller owns the returned scores, so that they outlive the courier.

    Attributes:
        courier: Handle of the `TeacherCourier` actor.
        url: URL of the service.
        teacher: Fingerprint of the teacher's weights and tokenizer. Scores of another model are rejected.
        token: Token of the service.
        timeout_s: Deadline for one group in seconds, including retries.
        max_retries: Number of retries after the loss of the connection, a replica or the courier.
    """

    courier: Any
    url: str
    teacher: str
    token: SecretStr
    timeout_s: float
    max_retries: int

    async def score(
        self,
        group_ref: ColumnsRef,
        *,
        num_tokens: int,
        support: TeacherSupport = None,
        prompt_ids: Array | None = None,
    ) -> ColumnsRef:
        """Score a group, see `actors.teacher.client.Teacher.score`."""
        return await retry_until(
            lambda: self._score_once(group_ref, num_tokens, support, prompt_ids),
            max_retries=self.max_retries,
            timeout_s=self.timeout_s,
            failure=f"the teacher at {self.url} did not score a group of {num_tokens} tokens",
        )

    def close(self) -> None:
        """Kill the courier."""
        ray.kill(self.courier)

    async def _score_once(
        self, group_ref: ColumnsRef, num_tokens: int, support: TeacherSupport, prompt_ids: Array | None
    ) -> ColumnsRef:
        who = f"the teacher at {self.url}"
        scores_ref, receipt_ref = self.courier.score.remote(group_ref, support, self.token, prompt_ids)
        try:
            with translated(who=who):
                receipt: Receipt = await receipt_ref  # unlimited wait: `retry_until` has the deadline
        except asyncio.CancelledError:
            ray.cancel(receipt_ref)
            raise
        if receipt.num_tokens != num_tokens:
            raise EngineError(f"{who} scored {receipt.num_tokens} tokens of a group; expected {num_tokens}")
        require_same_model(receipt.teacher, self.teacher, who=who)
        return scores_ref


async def attach_remote_teacher(
    config: RemoteTeacherConfig, *, client: str, tokenizer_fingerprint: str, label_selector: dict[str, str]
) -> tuple[RemoteTeacher, TeacherIdentity]:
    """Connect to a teacher service over HTTP.

    Args:
        config: URL, token source and limits of the service.
        client: Name of this client, for quotas.
        tokenizer_fingerprint: Fingerprint of the student's tokenizer.
        label_selector: Nodes on which the courier may run. They must be able to reach `config.url`.

    Raises:
        AccessError: The token is missing or the service refuses it.
        VocabularyMismatchError: Teacher and student do not share a vocabulary.
        PlanError: The service serves another model than `config.fingerprint`.
        WorkerLostError, DeadlineError, EngineError: The service does not answer.
    """
    who, token = f"the teacher at {config.url}", SecretStr(read_token(config))
    courier = (
        ray.remote(TeacherCourier)
        .options(num_cpus=0, max_restarts=-1, label_selector=label_selector)
        .remote(config.url, client=client, tokenizer=tokenizer_fingerprint, timeout_s=config.timeout_s)
    )
    try:
        identity = await _ask_identity(courier, token, who=who, max_retries=config.max_retries)
        require_tokenizer(identity, tokenizer_fingerprint, who=who)
        require_fingerprint(identity, config.fingerprint, who=who)
    except RladError:
        ray.kill(courier)
        raise
    attached = RemoteTeacher(
        courier=courier,
        url=config.url,
        teacher=identity.teacher,
        token=token,
        timeout_s=config.timeout_s,
        max_retries=config.max_retries,
    )
    return attached, identity


async def _ask_identity(courier: Any, token: SecretStr, *, who: str, max_retries: int) -> TeacherIdentity:
    async def ask() -> TeacherIdentity:
        with translated(who=who):
            # unlimited wait: `retry_until` has the deadline
            identity: TeacherIdentity = await courier.identity.remote(token)
        return identity

    return await retry_until(
        ask, max_retries=max_retries, timeout_s=CONTROL_TIMEOUT_S, failure=f"{who} did not report its identity"
    )
