"""What passes between the driver and its pools: plain records, which need neither Ray nor torch to be made and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlad.contracts import Array, Verdicts, WeightsManifest

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One group to sample. Fields as in `RolloutGroup`, and:

    Attributes:
        prompt_ids: int32 [P].
        num_responses: G.
        max_response_tokens: budget of one response.
        temperature: 0 is greedy, for evaluation; the group then records temperature 1, at which its log-probabilities are.
        top_p: below 1 for evaluation only: log-probabilities are then those of the cut distribution.
        seed: with `uid` it decides the responses, up to rounding in differently composed batches; None takes the engine's own stream.
    """

    uid: str
    attempt: int
    prompt_id: str
    task: str
    answer: str
    prompt_ids: Array
    num_responses: int
    max_response_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int | None

    @property
    def num_tokens_at_most(self) -> int:
        return len(self.prompt_ids) + self.num_responses * self.max_response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """What a rollout worker tells the driver of a group, without its tokens: its part of `SampledGroup`."""

    response_lengths: tuple[int, ...]
    is_truncated: tuple[bool, ...]
    tokens_by_version: Mapping[int, int]
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroup:
    """A group that was sampled.

    Attributes:
        group_ref: to the columns of the `RolloutGroup`. The driver owns it: it outlives the worker.
        response_lengths, is_truncated: of each response.
        prompt_tokens: length of the prompt.
        tokens_by_version: how many of its tokens each version of the weights sampled.
        worker: who sampled it.
        queued_s: waiting for a worker; elapsed_s: in the worker, its engine's queue included.
    """

    uid: str
    attempt: int
    group_ref: ObjectRef
    response_lengths: tuple[int, ...]
    is_truncated: tuple[bool, ...]
    prompt_tokens: int
    tokens_by_version: Mapping[int, int]
    worker: str
    queued_s: float
    elapsed_s: float

    @property
    def num_truncated(self) -> int:
        return sum(self.is_truncated)

    @property
    def oldest_version(self) -> int:
        return min(self.tokens_by_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGroup:
    """A group's verdicts, as a worker gives them and the driver hands them on: by value, there is nothing of a token in them.

    Attributes:
        elapsed_s: seconds that a worker spent on it.
        texts: of each response, decoded, where they were asked for.
        answers: what each response gives as its answer, None for one without; None altogether where they were not asked for or the task's verifier
            takes none out of a response.
    """

    verdicts: Verdicts
    elapsed_s: float
    texts: tuple[str, ...] | None = None
    answers: tuple[str | None, ...] | None = None

    @property
    def rewards(self) -> tuple[float, ...]:
        """Of each response."""
        return tuple(self.verdicts.rewards.tolist())

    @property
    def outcomes(self) -> tuple[int, ...]:
        """Of each response, `Outcome` values."""
        return tuple(self.verdicts.outcomes.tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsBucket:
    """64 MiB of a file of weights, the last one less.

    Attributes:
        digest: xxh3 (128 bits) of its bytes.
        ref: to a list of uint8 arrays that end to end are the bucket, which anyone with the reference can load. Ray drops it when the process that
            published it ends.
    """

    digest: bytes
    ref: ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPublication:
    """Weights that can be had.

    Attributes:
        manifest: version, checksum and size.
        buckets: that end to end are a safetensors file. Empty where the learner holds the weights and sends them to whom it is told; the checksum is then
            that of their layout.
    """

    manifest: WeightsManifest
    buckets: tuple[WeightsBucket, ...] = ()
