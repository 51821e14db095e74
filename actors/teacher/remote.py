"""A teacher service outside of this Ray cluster, reached over HTTP: an actor carries groups from the object store to it, and scores back.

The driver passes references, as to any other teacher. The token goes to the actor with every call, from process to process: an actor's constructor
arguments are kept by Ray.
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
from rlad.contracts import Columns, RolloutGroup, TeacherSupport
from rlad.errors import EngineError, RladError
from rlad.teacher.http_client import TeacherHttpClient, read_token
from rlad.teacher.retries import retry_until
from rlad.teacher.wire_format import TeacherIdentity


class TeacherCourier:
    """An asynchronous actor around a `TeacherHttpClient`. One try a call: the driver, which also sees this actor die, counts them."""

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
        return await self._client(token).identity()

    @ray.method(num_returns=2)
    async def score(self, columns: Columns, support: TeacherSupport, token: SecretStr) -> tuple[Columns, Receipt]:
        """The columns of a group's `TeacherScores`, and what was scored, so that the caller can leave the columns where they are."""
        scores = await self._client(token).score(RolloutGroup.from_columns(columns), support)
        return scores.to_columns(), Receipt(num_tokens=len(scores.logprobs), teacher=scores.teacher)

    def _client(self, token: SecretStr) -> TeacherHttpClient:
        if self._http is None:
            self._http = TeacherHttpClient(token=token.get_secret_value(), **self._settings)
        return self._http


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTeacher:
    """A `Teacher` behind a courier. What a courier returns is owned by its caller: scores outlive it.

    Attributes:
        teacher: fingerprint of its weights and tokenizer; scores of another model are refused.
    """

    courier: Any
    url: str
    teacher: str
    token: SecretStr
    timeout_s: float
    max_retries: int

    async def score(self, group_ref: ColumnsRef, *, num_tokens: int, support: TeacherSupport = None) -> ColumnsRef:
        """As `actors.teacher.client.Teacher.score` says."""
        return await retry_until(
            lambda: self._score_once(group_ref, num_tokens, support),
            max_retries=self.max_retries,
            timeout_s=self.timeout_s,
            what=f"the teacher at {self.url} did not score a group of {num_tokens} tokens",
        )

    def close(self) -> None:
        ray.kill(self.courier)

    async def _score_once(self, group_ref: ColumnsRef, num_tokens: int, support: TeacherSupport) -> ColumnsRef:
        who = f"the teacher at {self.url}"
        scores_ref, receipt_ref = self.courier.score.remote(group_ref, support, self.token)
        try:
            with translated(who=who):
                receipt: Receipt = await receipt_ref
        except asyncio.CancelledError:
            ray.cancel(receipt_ref)
            raise
        if receipt.num_tokens != num_tokens:
            raise EngineError(f"{who} scored {receipt.num_tokens} tokens of a group that was said to have {num_tokens}")
        require_same_model(receipt.teacher, self.teacher, who=who)
        return scores_ref


async def attach_remote_teacher(
    config: RemoteTeacherConfig, *, client: str, tokenizer_fingerprint: str, label_selector: dict[str, str]
) -> tuple[RemoteTeacher, TeacherIdentity]:
    """Join a teacher service over HTTP.

    Args:
        client: who will ask, for quotas.
        tokenizer_fingerprint: of the student.
        label_selector: of the node that the courier may run on, which has to reach `config.url`.

    Raises:
        AccessError: there is no token, or the service refuses it.
        VocabularyMismatchError: teacher and student do not share a vocabulary.
        PlanError: it is another model than `config.fingerprint`.
        WorkerLostError, DeadlineError, EngineError: no service answers.
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
            identity: TeacherIdentity = await courier.identity.remote(token)
        return identity

    return await retry_until(
        ask, max_retries=max_retries, timeout_s=CONTROL_TIMEOUT_S, what=f"{who} did not say what it is"
    )
