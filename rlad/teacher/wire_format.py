"""What a teacher service and its clients say to each other over HTTP: flat arrays as safetensors, with the few words that go beside them in its header.

Nothing in it is code, nothing is compressed, and every array's bytes are those of the record that it comes from. Shape letters as in `rlad.contracts`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rlad.contracts import Array, RolloutGroup, TeacherScores, TeacherSupport
from rlad.errors import (
    AccessError,
    ContractError,
    DeadlineError,
    EngineError,
    QuotaError,
    RladError,
    VocabularyMismatchError,
    WorkerLostError,
)

MEDIA_TYPE = "application/vnd.safetensors"

# Header length of safetensors, and the only key of its metadata that is used here.
_LENGTH_BYTES = 8
_WORDS = "words"

STATUS: Mapping[type[RladError], int] = {
    AccessError: 401,
    VocabularyMismatchError: 409,
    ContractError: 422,
    QuotaError: 429,
    EngineError: 500,
    WorkerLostError: 503,
    DeadlineError: 504,
}
"""HTTP status of each error that a service answers with. Its name goes along, so that a client raises the same."""


class _Words(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


WordsT = TypeVar("WordsT", bound=_Words)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherIdentity:
    """What a teacher is.

    Attributes:
        teacher: fingerprint of the whole model.
        tokenizer: fingerprint of its tokenizer.
        engine: who runs its forward pass.
        vocabulary: entries of its output layer.
        max_groups_per_client: that one client may have under way in a replica; 0 where there is no bound.
    """

    teacher: str
    tokenizer: str
    engine: Literal["vllm", "transformers"]
    vocabulary: int
    max_groups_per_client: int


class Problem(_Words):
    """The body of an answer that is none."""

    error: str = Field(description="Name of the error.")
    message: str


class RequestWords(_Words):
    """What goes beside the arrays of a request."""

    uid: Annotated[str, Field(min_length=1, max_length=400)]
    attempt: Annotated[int, Field(ge=0)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    support: Annotated[int, Field(ge=1)] | Literal["full"] | None
    tokenizer: Annotated[str, Field(max_length=200)]
    client: Annotated[str, Field(max_length=200)]


class _ScoresWords(_Words):
    uid: str
    attempt: int
    teacher: str
    support_size: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringRequest:
    """A group to score, without what is not the teacher's business: answer, log-probabilities of the policy.

    Attributes:
        tokenizer: fingerprint of that of the model which sampled the group.
        client: who asks, for quotas.
        support: what to score beside the sampled tokens.
    """

    group: RolloutGroup
    tokenizer: str
    client: str
    support: TeacherSupport = None

    def to_bytes(self) -> bytes:
        group = self.group
        words = RequestWords(
            uid=group.uid,
            attempt=group.attempt,
            temperature=group.temperature,
            support=self.support,
            tokenizer=self.tokenizer,
            client=self.client,
        )
        return _packed(
            words, {name: getattr(group, name) for name in ("prompt_ids", "response_ids", "response_offsets")}
        )

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Read what `to_bytes` made. What did not travel is blank in the group: task, answer, log-probabilities, versions.

        Raises:
            ContractError: it is something else, or its arrays contradict each other.
        """
        words, arrays = _unpacked(body, RequestWords)
        expected = {"prompt_ids", "response_ids", "response_offsets"}
        if arrays.keys() != expected:
            raise ContractError(f"a request to score has the arrays {sorted(expected)}, got {sorted(arrays)}")
        num_tokens, num_responses = len(arrays["response_ids"]), max(0, len(arrays["response_offsets"]) - 1)
        group = RolloutGroup(
            uid=words.uid,
            attempt=words.attempt,
            prompt_id="",
            task="",
            answer="",
            temperature=words.temperature,
            behaviour_logprobs=np.zeros(num_tokens, np.float32),
            policy_versions=np.zeros(num_tokens, np.int32),
            finish_reasons=np.zeros(num_responses, np.uint8),
            **arrays,
        )
        return cls(group=group, tokenizer=words.tokenizer, client=words.client, support=words.support)


def scores_to_bytes(scores: TeacherScores) -> bytes:
    words = _ScoresWords(
        uid=scores.uid, attempt=scores.attempt, teacher=scores.teacher, support_size=scores.support_size
    )
    columns = {name: column for name, column in scores.to_columns().items() if isinstance(column, np.ndarray)}
    return _packed(words, columns)


def scores_from_bytes(body: bytes) -> TeacherScores:
    """
    Raises:
        ContractError: it is not what `scores_to_bytes` made.
    """
    words, arrays = _unpacked(body, _ScoresWords)
    try:
        return TeacherScores(
            uid=words.uid, attempt=words.attempt, teacher=words.teacher, support_size=words.support_size, **arrays
        )
    except TypeError as error:
        raise ContractError(f"a teacher's scores have other arrays than {sorted(arrays)}: {error}") from error


def problem_of(error: RladError) -> tuple[int, Problem]:
    """HTTP status and body for an error, as the nearest of `STATUS` that it is."""
    kind = next((kind for kind in type(error).__mro__ if kind in STATUS), EngineError)
    return STATUS[kind], Problem(error=kind.__name__, message=str(error))


def error_of(status: int, body: bytes, *, who: str) -> RladError:
    """The error that an answer stands for. One without a name of ours comes from something before the service: a proxy, Serve itself."""
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        kind: type[RladError] = {
            401: AccessError,
            403: AccessError,
            429: QuotaError,
            502: WorkerLostError,
            503: WorkerLostError,
            504: WorkerLostError,
        }.get(status, EngineError)
        return kind(f"{who} answered with status {status}: {body[:200].decode(errors='replace')}")
    named = {kind.__name__: kind for kind in STATUS}.get(problem.error, EngineError)
    return named(problem.message)


def _packed(words: _Words, arrays: Mapping[str, Array]) -> bytes:
    body: bytes = save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        metadata={_WORDS: words.model_dump_json()},
    )
    return body


def _unpacked(body: bytes, kind: type[WordsT]) -> tuple[WordsT, dict[str, Array]]:
    try:
        arrays: dict[str, Array] = load(body)  # checks the header: lengths, bounds, no gap, no overlap
        header = json.loads(body[_LENGTH_BYTES : _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")])
        words = kind.model_validate_json(header["__metadata__"][_WORDS])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ContractError(
            f"expected safetensors with {kind.__name__.strip('_')} in the header, got {len(body)} bytes of something else: {error}"
        ) from error
    return words, arrays
