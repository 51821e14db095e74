"""Wire format between a teacher service and its HTTP clients.

A body is a safetensors file: flat arrays, and a few scalar fields as JSON in the metadata of its header. It contains no
code and no compression, and every array has exactly the bytes of the record it comes from. Shape letters are those of
`rlad.contracts`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

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

# Size of the header length of safetensors, and the only metadata key in use.
_LENGTH_BYTES = 8
_FIELDS_KEY = "words"

STATUS: Mapping[type[RladError], int] = {
    AccessError: 401,
    VocabularyMismatchError: 409,
    ContractError: 422,
    QuotaError: 429,
    EngineError: 500,
    WorkerLostError: 503,
    DeadlineError: 504,
}
"""HTTP status of each error of a service. The body names the error, so that a client raises the same one."""


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


FieldsT = TypeVar("FieldsT", bound=_Fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherIdentity:
    """Identity and limits of a teacher.

    Attributes:
        teacher: Fingerprint of the model and its tokenizer.
        tokenizer: Fingerprint of the tokenizer.
        engine: Engine that runs the forward pass.
        vocabulary: Number of entries of the output layer.
        max_groups_per_client: Maximum number of groups in progress per client and replica; 0 means unlimited.
        shares_ids_with: Fingerprints of other tokenizers, with fewer tokens, whose ids have the same meaning.
        context_tokens: Maximum length of prompt and response, in tokens; 0 means that the service does not tell.
    """

    teacher: str
    tokenizer: str
    engine: Literal["vllm", "transformers"]
    vocabulary: int
    max_groups_per_client: int
    shares_ids_with: tuple[str, ...] = ()
    context_tokens: int = 0

    def reads(self, tokenizer: str) -> bool:
        """Return whether the teacher can score token ids of a tokenizer, given its fingerprint."""
        return tokenizer == self.tokenizer or tokenizer in self.shares_ids_with


class Problem(_Fields):
    """Body of an error response."""

    error: str = Field(description="Name of the error class.")
    message: str


class RequestFields(_Fields):
    """Scalar fields of a request."""

    uid: Annotated[str, Field(min_length=1, max_length=400)]
    attempt: Annotated[int, Field(ge=0)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    support: Annotated[int, Field(ge=1)] | Literal["full", "hidden_states"] | None
    tokenizer: Annotated[str, Field(max_length=200)]
    client: Annotated[str, Field(max_length=200)]


class _ScoresFields(_Fields):
    uid: str
    attempt: int
    teacher: str
    support_size: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringRequest:
    """Request to score a group. Only the fields that the teacher needs are sent, not the answer or the policy's scores.

    Attributes:
        group: Group to score.
        tokenizer: Fingerprint of the tokenizer of the model that sampled the group.
        client: Name of the client, for quotas.
        support: Tokens to score in addition to the sampled ones.
    """

    group: RolloutGroup
    tokenizer: str
    client: str
    support: TeacherSupport = None

    def to_bytes(self) -> bytes:
        """Return the body of the request."""
        group = self.group
        fields = RequestFields(
            uid=group.uid,
            attempt=group.attempt,
            temperature=group.temperature,
            support=self.support,
            tokenizer=self.tokenizer,
            client=self.client,
        )
        return _packed(
            fields, {name: getattr(group, name) for name in ("prompt_ids", "response_ids", "response_offsets")}
        )

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Parse a body made by `to_bytes`.

        Fields of the group that are not sent are blank: task, answer, log-probabilities and policy versions.

        Raises:
            ContractError: The body is not a request, or its arrays contradict each other.
        """
        fields, arrays = _unpacked(body, RequestFields)
        expected = {"prompt_ids", "response_ids", "response_offsets"}
        if arrays.keys() != expected:
            raise ContractError(f"a scoring request must have the arrays {sorted(expected)}; got {sorted(arrays)}")
        odd = {name: f"{array.dtype} {list(array.shape)}" for name, array in arrays.items() if array.ndim != 1}
        if odd:
            raise ContractError(f"the arrays of a scoring request must be one-dimensional; got {odd}")
        num_tokens, num_responses = len(arrays["response_ids"]), max(0, len(arrays["response_offsets"]) - 1)
        group = RolloutGroup(
            uid=fields.uid,
            attempt=fields.attempt,
            prompt_id="",
            task="",
            answer="",
            temperature=fields.temperature,
            behaviour_logprobs=np.zeros(num_tokens, np.float32),
            policy_versions=np.zeros(num_tokens, np.int32),
            finish_reasons=np.zeros(num_responses, np.uint8),
            **arrays,
        )
        return cls(group=group, tokenizer=fields.tokenizer, client=fields.client, support=fields.support)


def scores_to_bytes(scores: TeacherScores) -> bytes:
    """Return the body of a response with scores."""
    fields = _ScoresFields(
        uid=scores.uid, attempt=scores.attempt, teacher=scores.teacher, support_size=scores.support_size
    )
    columns = {name: column for name, column in scores.to_columns().items() if isinstance(column, np.ndarray)}
    return _packed(fields, columns)


def scores_from_bytes(body: bytes) -> TeacherScores:
    """Parse a body made by `scores_to_bytes`.

    Raises:
        ContractError: The body does not hold scores.
    """
    fields, arrays = _unpacked(body, _ScoresFields)
    columns: Mapping[str, Any] = arrays
    try:
        return TeacherScores(
            uid=fields.uid, attempt=fields.attempt, teacher=fields.teacher, support_size=fields.support_size, **columns
        )
    except TypeError as error:
        raise ContractError(f"unexpected arrays in a teacher's scores, {sorted(arrays)}: {error}") from error


def problem_of(error: RladError) -> tuple[int, Problem]:
    """Return the HTTP status and body of an error, by its most specific base class in `STATUS`."""
    kind = next((kind for kind in type(error).__mro__ if kind in STATUS), EngineError)
    return STATUS[kind], Problem(error=kind.__name__, message=str(error))


def error_of(status: int, body: bytes, *, who: str) -> RladError:
    """Return the error that an error response stands for.

    A body without a named error comes from a component in front of the service, such as a proxy or Serve itself.
    """
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


def _packed(fields: _Fields, arrays: Mapping[str, Array]) -> bytes:
    body: bytes = save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        metadata={_FIELDS_KEY: fields.model_dump_json()},
    )
    return body


def _unpacked(body: bytes, kind: type[FieldsT]) -> tuple[FieldsT, dict[str, Array]]:
    try:
        arrays: dict[str, Array] = load(body)  # checks the header: lengths, bounds, no gap, no overlap
        header = json.loads(body[_LENGTH_BYTES : _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")])
        fields = kind.model_validate_json(header["__metadata__"][_FIELDS_KEY])
    # A header can also declare a shape that no machine can hold, or nest deeper than Python reads.
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise ContractError(
            f"expected a safetensors body with {kind.__name__.strip('_')} in its header; got {len(body)} bytes of "
            f"another format: {error}"
        ) from error
    return fields, arrays
