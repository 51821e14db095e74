"""Records that move between the pools, stored as flat numpy columns.

Shape letters: G responses of a group, T response tokens of the group in total, P prompt tokens, K tokens of a teacher's
support, H size of a teacher's hidden state.

A record is validated once, at construction, and frozen. `to_columns` returns a plain mapping of arrays and small
scalars for the object store, a file, or a wire format without pickle. `from_columns` wraps such a mapping again without
copying an array. Arrays read from Ray's object store are read-only views of shared memory, so no code here writes to
them.

A response token costs 16 bytes: token id, behaviour log-probability, policy version and teacher log-probability, 4
bytes each. A reference policy adds 4 bytes. A teacher's support adds 8 K + 4 bytes, and its hidden states add 2 H in
bfloat16 and 4 H in float32. Both are requested only if the objective needs them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from rlad.errors import ContractError

Columns = dict[str, Any]
Array = npt.NDArray[Any]
TeacherSupport = int | Literal["full", "hidden_states"] | None
"""Teacher scores that an objective needs besides those of the sampled tokens.

None: no others. An integer K: those of the K most likely tokens. `full`: those of the whole vocabulary.
`hidden_states`: the last hidden states, from which the learner computes all of them.
"""


def finite_rows(hidden_states: Array) -> Array:
    """Return which hidden states have no NaN and no infinity, bool [N].

    Args:
        hidden_states: float32 [N, H], or uint16 [N, H] with the bits of bfloat16.
    """
    if hidden_states.dtype == np.uint16:
        # All exponent bits are set in NaN and infinity only.
        return np.asarray(((hidden_states & 0x7F80) != 0x7F80).all(axis=1))
    return np.asarray(np.isfinite(hidden_states).all(axis=1))


class FinishReason(enum.IntEnum):
    """End of a response: `STOP` at the end-of-sequence token, `LENGTH` at the token budget (a truncated response)."""

    STOP = 0
    LENGTH = 1


class Outcome(enum.IntEnum):
    """Result of verification. A timeout or an error of the verifier is not a wrong answer and is counted separately."""

    CORRECT = 0
    WRONG = 1
    UNPARSEABLE = 2
    TIMEOUT = 3
    ERROR = 4

    @property
    def is_judged(self) -> bool:
        """Whether the verifier came to a verdict. The reward of a timeout or an error means nothing."""
        return self not in (Outcome.TIMEOUT, Outcome.ERROR)


class ColumnarRecord:
    """Base of records that convert to and from columns.

    Subclasses are frozen dataclasses whose fields are arrays or small scalars.
    """

    __slots__ = ()

    def to_columns(self) -> Columns:
        """Return the fields by name. Arrays are shared with the record, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """Return the record of columns that `to_columns` returned. Arrays are shared with `columns`, not copied.

        Raises:
            ContractError: A column is missing, unknown, or contradicts another.
        """
        expected = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if expected != columns.keys():
            missing, unknown = sorted(expected - columns.keys()), sorted(columns.keys() - expected)
            raise ContractError(
                f"{cls.__name__}: expected columns {sorted(expected)}; missing {missing}, unknown {unknown}"
            )
        return cls(**columns)

    def _require(self, condition: bool, problem: str) -> None:
        if not condition:
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
        uid: Permanent identifier of the group, `dataset fingerprint:epoch:index`.
        attempt: Attempt number, from 0. Results of earlier attempts are stale.
        prompt_id: Id of the prompt record.
        task: Name of the task, which selects the verifier.
        answer: Expected answer, in the form that the verifier reads.
        temperature: Sampling temperature of the behaviour policy.
        prompt_ids: Prompt tokens, int32 [P].
        response_ids: Response tokens end to end, end-of-sequence tokens included, int32 [T].
        response_offsets: Boundaries of the responses, int64 [G + 1]. Response i is
            `response_ids[offsets[i]:offsets[i + 1]]`; it may be empty.
        behaviour_logprobs: Log-probability of each sampled token at `temperature` under the policy that sampled it, in
            nats, float32 [T].
        policy_versions: Policy version that sampled each token, int32 [T].
        finish_reasons: `FinishReason` of each response, uint8 [G].
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
        self._require(not np.isnan(logprobs).any(), "behaviour_logprobs holds NaN, so the sampling engine is broken")
        self._require_array("policy_versions", np.int32, num_tokens)
        reasons = self._require_array("finish_reasons", np.uint8, len(offsets) - 1)
        self._require(
            bool(np.all(reasons <= FinishReason.LENGTH)),
            f"finish_reasons must be at most {int(FinishReason.LENGTH)}, got {reasons.max(initial=0)}",
        )

    @property
    def num_responses(self) -> int:
        """Group size, G."""
        return len(self.response_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Number of response tokens of the group, T."""
        return len(self.response_ids)

    @property
    def response_lengths(self) -> Array:
        """Tokens of each response, int64 [G]."""
        return np.diff(self.response_offsets)

    @property
    def is_truncated(self) -> Array:
        """True for each response that reached the token budget, bool [G]."""
        is_truncated: Array = self.finish_reasons == FinishReason.LENGTH
        return is_truncated

    def behind(self, prompt_ids: Array | None) -> RolloutGroup:
        """Return the responses behind another prompt, int32 [P]; None keeps the group. Token columns are shared."""
        return self if prompt_ids is None else replace(self, prompt_ids=prompt_ids)

    def response(self, index: int) -> slice:
        """Return the slice of response `index` in every token column."""
        return slice(int(self.response_offsets[index]), int(self.response_offsets[index + 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherScores(ColumnarRecord):
    """Scores of a group by a frozen model, the teacher or the reference policy.

    A score is the log-probability of a sampled token and, if requested, those of the model's K most likely tokens at
    the same position. All log-probabilities are in nats, at the group's temperature. A missing score
    is NaN or infinite; it is masked later and never replaced.

    Instead of log-probabilities, the record can hold the model's last hidden state at the position that predicts each
    token, in the dtype of the model. With the output layer they give the log-probabilities of the whole vocabulary.

    Attributes:
        uid: Uid of the scored group.
        attempt: Attempt of the scored group.
        teacher: Fingerprint of the model's weights and tokenizer.
        logprobs: Log-probabilities of the sampled tokens, float32 [T]. All NaN if hidden states are given.
        support_size: K; the vocabulary size if the support is the whole vocabulary; 0 if only sampled tokens are
            scored.
        support_ids: The K most likely tokens at each position, in any order, int32 [T * K]; None if K is 0.
        support_logprobs: Log-probabilities of `support_ids`, float32 [T * K]; None if K is 0.
        tail_logprobs: Log of the probability outside the support, -inf if the support is the whole vocabulary, float32
            [T]; None if K is 0.
        hidden_size: H; 0 without hidden states.
        hidden_states: Last hidden states, after the final norm, float32 [T * H], or uint16 [T * H] with the bits of
            bfloat16; None if H is 0.
        output_layer: SHA-256 of the output layer that belongs to the hidden states; empty without them.
    """

    uid: str
    attempt: int
    teacher: str
    logprobs: Array
    support_size: int = 0
    support_ids: Array | None = None
    support_logprobs: Array | None = None
    tail_logprobs: Array | None = None
    hidden_size: int = 0
    hidden_states: Array | None = None
    output_layer: str = ""

    def __post_init__(self) -> None:
        num_tokens = len(self._require_array("logprobs", np.float32))
        columns = {
            "support_ids": self.support_ids,
            "support_logprobs": self.support_logprobs,
            "tail_logprobs": self.tail_logprobs,
        }
        present = [name for name, column in columns.items() if column is not None]
        self._require(self.support_size >= 0, f"support_size must be at least 0, got {self.support_size}")
        expected = list(columns) if self.support_size > 0 else []
        self._require(
            present == expected, f"support_size {self.support_size} requires the columns {expected}, got {present}"
        )
        if self.support_size > 0:
            ids = self._require_array("support_ids", np.int32, num_tokens * self.support_size)
            self._require(bool(np.all(ids >= 0)), "support_ids holds a negative token id")
            self._require_array("support_logprobs", np.float32, num_tokens * self.support_size)
            self._require_array("tail_logprobs", np.float32, num_tokens)
        self._require(
            (self.hidden_size > 0) == (self.hidden_states is not None) == bool(self.output_layer),
            f"hidden_size {self.hidden_size}, hidden_states and output_layer must be given together",
        )
        if self.hidden_states is not None:
            self._require(self.support_size == 0, "hidden states and a support exclude each other")
            dtype = np.uint16 if self.hidden_states.dtype == np.uint16 else np.float32
            self._require_array("hidden_states", dtype, num_tokens * self.hidden_size)

    @property
    def hidden_rows(self) -> Array:
        """Hidden state of each token, float32 or uint16 [T, H]; H is 0 without hidden states."""
        if self.hidden_states is None:
            return np.empty((len(self.logprobs), 0), np.float32)
        return self.hidden_states.reshape(-1, self.hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts(ColumnarRecord):
    """Verdicts on the responses of a group.

    Attributes:
        uid: Uid of the verified group.
        attempt: Attempt of the verified group.
        rewards: Reward of each response, float32 [G].
        outcomes: `Outcome` of each response, uint8 [G].
        elapsed_s: Verification time of each response in seconds, float32 [G].
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
        self._require(
            bool(np.all(outcomes <= Outcome.ERROR)),
            f"outcomes must be at most {int(Outcome.ERROR)}, got {outcomes.max(initial=0)}",
        )
        self._require_array("elapsed_s", np.float32, len(rewards))

    @property
    def is_judged(self) -> Array:
        """Which responses the verifier judged, bool [G]. Timeouts and errors are left out of updates and baselines."""
        judged: Array = (self.outcomes != Outcome.TIMEOUT) & (self.outcomes != Outcome.ERROR)
        return judged


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """Group with its verdicts and scores: all that the learner needs of it.

    Attributes:
        group: The sampled responses.
        verdicts: Their verdicts.
        rewards: float32 [G], shaped rewards: the verifier's, less the overlong penalty. Advantages are computed from
            these; masks of correct responses use the verifier's.
        teacher_scores: Scores of the teacher; None if the objective does not use it.
        reference_scores: Scores of the reference policy; None if the objective does not use it.

    Raises:
        ContractError: The parts belong to different groups or attempts, or differ in length.
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
                raise ContractError(
                    f"ScoredGroup: {type(part).__name__} belongs to {part.uid} attempt {part.attempt}, "
                    f"but the group is {self.group.uid} attempt {self.group.attempt}"
                )
        for rewards in (self.verdicts.rewards, self.rewards):
            if len(rewards) != self.group.num_responses:
                raise ContractError(
                    f"ScoredGroup {self.group.uid}: expected {self.group.num_responses} rewards, one per response; "
                    f"got {len(rewards)}"
                )
        for name, part in scores.items():
            if len(part.logprobs) != self.group.num_tokens:
                raise ContractError(
                    f"ScoredGroup {self.group.uid}: expected {self.group.num_tokens} {name} scores, one per token; "
                    f"got {len(part.logprobs)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsManifest:
    """Identity of a set of published weights, which lets a receiver refuse the wrong set.

    Attributes:
        version: Policy version, the number of trained steps.
        checksum: Hex digest of the published bytes. For weights sent from GPU to GPU, hex digest of their names, dtypes
            and shapes.
        num_bytes: Size in bytes.
    """

    version: int
    checksum: str
    num_bytes: int

    def __post_init__(self) -> None:
        if self.version < 0 or not self.checksum or self.num_bytes <= 0:
            raise ContractError(
                "WeightsManifest: expected version >= 0, a checksum and num_bytes > 0; "
                f"got version {self.version}, checksum {self.checksum!r}, num_bytes {self.num_bytes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationProgress:
    """Generation of one rollout worker since it started. Time in which its weights are updated does not count.

    Attributes:
        tokens: Response tokens, those of unfinished responses included.
        busy_s: Seconds during which it decoded at least one sequence.
        sequence_s: The same, summed over the sequences that it decoded at once.
    """

    tokens: int
    busy_s: float
    sequence_s: float
