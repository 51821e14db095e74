"""Records that move between the pools, as flat numpy columns.

Shape letters: G responses of a group, N tokens of all its responses together, P tokens of the prompt, K tokens of a teacher's support.

A record is validated once, at construction, and frozen. `to_columns` gives the plain mapping of arrays and small scalars that the object store (or a file,
or a wire without pickle) carries; `from_columns` wraps such a mapping again without copying an array. Arrays that come out of Ray's object store are
read-only views of shared memory: nothing here writes to them.

A response token costs 16 bytes across all columns: id, behaviour log-probability, policy version and teacher log-probability, 4 each. A frozen
reference adds 4; a teacher's support of K tokens adds 8 K + 4, and is asked for only where the objective needs it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from rlad.errors import ContractError

Columns = dict[str, Any]
Array = npt.NDArray[Any]
TeacherSupport = int | Literal["full"] | None
"""What an objective wants of a teacher: scores of sampled tokens only (None), those and of so many likeliest tokens, or of the whole vocabulary."""


class FinishReason(enum.IntEnum):
    """Why a response ended: the end-of-sequence token, or the token budget (a truncated response)."""

    STOP = 0
    LENGTH = 1


class Outcome(enum.IntEnum):
    """What a verifier found. A timeout or a verifier's own error is not a wrong answer, so they are kept apart and counted."""

    CORRECT = 0
    WRONG = 1
    UNPARSEABLE = 2
    TIMEOUT = 3
    ERROR = 4


class ColumnarRecord:
    """Conversion between a record and its columns. Subclasses are frozen dataclasses whose fields are arrays or small scalars."""

    __slots__ = ()

    def to_columns(self) -> Columns:
        """The record's fields by name. Arrays are the record's own, not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """Wrap columns that `to_columns` gave. Arrays are shared with `columns`.

        Raises:
            ContractError: a column is missing, unknown, or contradicts another.
        """
        expected = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if expected != columns.keys():
            missing, unknown = sorted(expected - columns.keys()), sorted(columns.keys() - expected)
            raise ContractError(f"{cls.__name__}: columns missing {missing}, unknown {unknown}")
        return cls(**columns)

    def _require(self, claim: bool, problem: str) -> None:
        if not claim:
            raise ContractError(f"{type(self).__name__} {getattr(self, 'uid', '')}: {problem}")

    def _require_array(self, name: str, dtype: type[np.generic], length: int | None = None) -> Array:
        array: Array = getattr(self, name)
        self._require(
            isinstance(array, np.ndarray) and array.ndim == 1,
            f"{name} must be a one-dimensional numpy array, got {type(array).__name__}",
        )
        self._require(array.dtype == dtype, f"{name} must be {np.dtype(dtype)}, got {array.dtype}")
        if length is not None:
            self._require(len(array) == length, f"{name} must have {length} entries, got {len(array)}")
        return array


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup(ColumnarRecord):
    """G responses sampled for one prompt.

    Attributes:
        uid: the group's name for ever: `dataset fingerprint:epoch:index`.
        attempt: 0 for the first try; a later one makes the answers of earlier ones stale.
        prompt_id: id of the prompt record.
        task: which verifier judges the responses.
        answer: what the verifier compares with.
        temperature: sampling temperature of the behaviour policy.
        prompt_ids: int32 [P].
        response_ids: int32 [N], the responses end to end, end-of-sequence token included.
        response_offsets: int64 [G + 1]; response i is `response_ids[offsets[i]:offsets[i + 1]]`. May be empty.
        behaviour_logprobs: float32 [N], nats, of each sampled token at `temperature` under the policy that sampled it.
        policy_versions: int32 [N], version of the weights that sampled each token.
        finish_reasons: uint8 [G], `FinishReason`.
    """

    uid: str
    attempt: int
    prompt_id: str
    task: str
    answer: str
    temperature: float
    prompt_ids: Array
    response_ids: Array
    response_offsets: Array
    behaviour_logprobs: Array
    policy_versions: Array
    finish_reasons: Array

    def __post_init__(self) -> None:
        self._require(bool(self.uid), "uid is empty")
        self._require(self.attempt >= 0, f"attempt must be at least 0, got {self.attempt}")
        self._require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        self._require(len(self._require_array("prompt_ids", np.int32)) > 0, "the prompt is empty")
        offsets = self._require_array("response_offsets", np.int64)
        self._require(
            len(offsets) >= 2 and offsets[0] == 0, "response_offsets must start at 0 and hold at least one response"
        )
        self._require(bool(np.all(np.diff(offsets) >= 0)), "response_offsets must not decrease")
        num_tokens = int(offsets[-1])
        self._require_array("response_ids", np.int32, num_tokens)
        logprobs = self._require_array("behaviour_logprobs", np.float32, num_tokens)
        self._require(not np.isnan(logprobs).any(), "behaviour_logprobs holds NaN: the sampling engine is broken")
        self._require_array("policy_versions", np.int32, num_tokens)
        reasons = self._require_array("finish_reasons", np.uint8, len(offsets) - 1)
        self._require(bool(np.all(reasons <= FinishReason.LENGTH)), "finish_reasons holds an unknown reason")

    @property
    def num_responses(self) -> int:
        return len(self.response_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Response tokens, N."""
        return len(self.response_ids)

    @property
    def response_lengths(self) -> Array:
        """int64 [G]."""
        return np.diff(self.response_offsets)

    @property
    def is_truncated(self) -> Array:
        """bool [G]: the response hit the token budget."""
        is_truncated: Array = self.finish_reasons == FinishReason.LENGTH
        return is_truncated

    def response(self, index: int) -> slice:
        """The tokens of response `index` in every token column."""
        return slice(int(self.response_offsets[index]), int(self.response_offsets[index + 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherScores(ColumnarRecord):
    """What a frozen model says about a group: its log-probability of every sampled token and, where asked for, of its own K likeliest tokens there.

    All log-probabilities are in nats, at the group's temperature. NaN or infinite where the model gave none: masked later, never replaced.

    Attributes:
        uid, attempt: of the group that was scored.
        teacher: fingerprint of the model's weights and tokenizer.
        logprobs: float32 [N], of the sampled tokens.
        support_size: K, the size of the vocabulary where the support is all of it; 0 where only sampled tokens are scored.
        support_ids: int32 [N * K], for each response token in turn the K likeliest tokens in any order; None where K is 0.
        support_logprobs: float32 [N * K], theirs; None where K is 0.
        tail_logprobs: float32 [N], log of the probability outside the support, -inf where nothing is outside; None where K is 0.
    """

    uid: str
    attempt: int
    teacher: str
    logprobs: Array
    support_size: int = 0
    support_ids: Array | None = None
    support_logprobs: Array | None = None
    tail_logprobs: Array | None = None

    def __post_init__(self) -> None:
        num_tokens = len(self._require_array("logprobs", np.float32))
        columns = {
            "support_ids": self.support_ids,
            "support_logprobs": self.support_logprobs,
            "tail_logprobs": self.tail_logprobs,
        }
        given = [name for name, column in columns.items() if column is not None]
        self._require(self.support_size >= 0, f"support_size must be at least 0, got {self.support_size}")
        wanted = list(columns) if self.support_size > 0 else []
        self._require(given == wanted, f"support_size {self.support_size} goes with the columns {wanted}, got {given}")
        if self.support_size > 0:
            ids = self._require_array("support_ids", np.int32, num_tokens * self.support_size)
            self._require(bool(np.all(ids >= 0)), "support_ids holds a negative token id")
            self._require_array("support_logprobs", np.float32, num_tokens * self.support_size)
            self._require_array("tail_logprobs", np.float32, num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts(ColumnarRecord):
    """What the verifier found for each response of a group.

    Attributes:
        rewards: float32 [G].
        outcomes: uint8 [G], `Outcome`.
        elapsed_s: float32 [G], seconds spent on each response.
    """

    uid: str
    attempt: int
    rewards: Array
    outcomes: Array
    elapsed_s: Array

    def __post_init__(self) -> None:
        rewards = self._require_array("rewards", np.float32)
        self._require(bool(np.isfinite(rewards).all()), "rewards must be finite")
        outcomes = self._require_array("outcomes", np.uint8, len(rewards))
        self._require(bool(np.all(outcomes <= Outcome.ERROR)), "outcomes holds an unknown outcome")
        self._require_array("elapsed_s", np.float32, len(rewards))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group with its verdicts and, where the objective needs them, the scores of a teacher and of a frozen reference: all the learner wants to know.

    Raises:
        ContractError: the parts are of different groups or attempts, or differ in length.
    """

    group: RolloutGroup
    verdicts: Verdicts
    rewards: Array
    teacher_scores: TeacherScores | None
    reference_scores: TeacherScores | None = None

    def __post_init__(self) -> None:
        scores = {
            name: part for name in ("teacher", "reference") if (part := getattr(self, f"{name}_scores")) is not None
        }
        for part in (self.verdicts, *scores.values()):
            if (part.uid, part.attempt) != (self.group.uid, self.group.attempt):
                came, want = f"{part.uid} attempt {part.attempt}", f"{self.group.uid} attempt {self.group.attempt}"
                raise ContractError(f"ScoredGroup: {type(part).__name__} is of {came}, the group is {want}")
        for rewards in (self.verdicts.rewards, self.rewards):
            if len(rewards) != self.group.num_responses:
                raise ContractError(
                    f"ScoredGroup {self.group.uid}: {len(rewards)} rewards for {self.group.num_responses} responses"
                )
        for name, part in scores.items():
            if len(part.logprobs) != self.group.num_tokens:
                raise ContractError(
                    f"ScoredGroup {self.group.uid}: {len(part.logprobs)} {name} scores for {self.group.num_tokens} tokens"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch(ColumnarRecord):
    """One micro-batch as the learner runs it: M whole sequences (prompt and response) packed end to end in one row of S tokens.

    Row position s predicts token `target_ids[s]`; a position that predicts a prompt token, or the first token of the next sequence, has weight 0.
    The weights carry every normaliser (mean over responses of mean over tokens, counted over the whole optimizer step and all ranks), so the
    gradient of the summed weighted token losses does not depend on how the batch was cut.

    Attributes:
        token_ids: int64 [S].
        target_ids: int64 [S].
        position_ids: int64 [S], restarting at 0 with each sequence.
        sequence_offsets: int32 [M + 1].
        behaviour_logprobs: float32 [S], 0 where the weight is 0.
        teacher_logprobs: float32 [S], 0 where the weight is 0; None without a teacher.
        advantages: float32 [S].
        weights: float32 [S].
        reference_logprobs: float32 [S], 0 where the weight is 0; None without a frozen reference.
        is_imitated: bool [S], whether a token has a distillation term; None where all have.
        support_size: K of the teacher's support; 0 without one.
        support_ids: int64 [S * K]; None without a support, like the two below.
        teacher_support_logprobs: float32 [S * K], 0 where the weight is 0.
        teacher_tail_logprobs: float32 [S], 0 where the weight is 0; -inf where the support is the whole vocabulary.
    """

    token_ids: Array
    target_ids: Array
    position_ids: Array
    sequence_offsets: Array
    behaviour_logprobs: Array
    teacher_logprobs: Array | None
    advantages: Array
    weights: Array
    reference_logprobs: Array | None = None
    is_imitated: Array | None = None
    support_size: int = 0
    support_ids: Array | None = None
    teacher_support_logprobs: Array | None = None
    teacher_tail_logprobs: Array | None = None

    def __post_init__(self) -> None:
        size = len(self._require_array("token_ids", np.int64))
        self._require(size > 0, "the micro-batch is empty")
        for name in ("target_ids", "position_ids"):
            self._require_array(name, np.int64, size)
        given = [name for name in ("teacher_logprobs", "reference_logprobs") if getattr(self, name) is not None]
        for name in ("behaviour_logprobs", "advantages", "weights", *given):
            self._require(
                bool(np.isfinite(self._require_array(name, np.float32, size)).all()), f"{name} must be finite"
            )
        if self.is_imitated is not None:
            self._require_array("is_imitated", np.bool_, size)
        if self.support_size:
            self._require_array("support_ids", np.int64, size * self.support_size)
            self._require(
                bool(
                    np.isfinite(
                        self._require_array("teacher_support_logprobs", np.float32, size * self.support_size)
                    ).all()
                ),
                "teacher_support_logprobs must be finite",
            )
            self._require(
                not np.isnan(self._require_array("teacher_tail_logprobs", np.float32, size)).any(),
                "teacher_tail_logprobs holds NaN",
            )
        offsets = self._require_array("sequence_offsets", np.int32)
        self._require(
            len(offsets) >= 2 and offsets[0] == 0 and offsets[-1] == size, f"sequence_offsets must run from 0 to {size}"
        )
        self._require(bool(np.all(np.diff(offsets) > 0)), "a sequence in the row is empty")

    @property
    def num_sequences(self) -> int:
        return len(self.sequence_offsets) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsManifest:
    """What a set of published weights is: enough to refuse the wrong one.

    Attributes:
        version: the policy version, a count of trained steps.
        checksum: hex digest of the bytes that were published; of weights that go straight from GPU to GPU, of their names, types and shapes.
        num_bytes: their number.
    """

    version: int
    checksum: str
    num_bytes: int

    def __post_init__(self) -> None:
        if self.version < 0 or not self.checksum or self.num_bytes <= 0:
            raise ContractError(
                f"WeightsManifest: version {self.version}, checksum {self.checksum!r}, {self.num_bytes} bytes"
            )
