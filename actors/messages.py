"""Records that pass between pools and driver: plain dataclasses, which need neither Ray nor torch.

A group is described by one chain of records, and each stage adds its part to what came before:

    SampleRequest -> GroupSummary -> SampledGroup -> ExperienceGroup (actors/experience/group.py)
      (driver)       (worker)        (rollout pool)  (driver; for broker and learner)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from rlad.contracts import Array, RolloutGroup, Verdicts, WeightsManifest
from rlad.repetition import ends_in_loop

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Request to sample one group of responses. Fields as in `RolloutGroup`, and:

    Attributes:
        prompt_ids: int32 [P], prompt tokens.
        num_responses: Number of responses G.
        max_response_tokens: Token budget of one response.
        temperature: Sampling temperature. 0 is greedy and for evaluation only; the group then records temperature 1,
            at which its log-probabilities are taken.
        top_p: Nucleus sampling. Below 1 for evaluation only: log-probabilities are then those of the cut distribution.
        seed: Together with `uid` it determines the responses, up to rounding in differently composed batches. None
            uses the engine's own random stream.
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
    def max_total_tokens(self) -> int:
        """Upper bound of the group's tokens, prompt included. The cost that routing balances."""
        return len(self.prompt_ids) + self.num_responses * self.max_response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """The small numbers of a group: all that driver and broker know of its tokens.

    Attributes:
        prompt_tokens: Length of the prompt.
        response_lengths: Tokens of each response.
        is_truncated: Whether each response reached the token budget.
        tokens_by_version: Number of response tokens by the policy version that sampled them.
        num_repetitive: Number of responses that end in a loop.
    """

    uid: str
    attempt: int
    prompt_tokens: int
    response_lengths: tuple[int, ...]
    is_truncated: tuple[bool, ...]
    tokens_by_version: Mapping[int, int]
    num_repetitive: int = 0

    @classmethod
    def of(cls, group: RolloutGroup) -> Self:
        """Summarise a group's columns."""
        versions, counts = np.unique(group.policy_versions, return_counts=True)
        return cls(
            uid=group.uid,
            attempt=group.attempt,
            prompt_tokens=len(group.prompt_ids),
            response_lengths=tuple(group.response_lengths.tolist()),
            is_truncated=tuple(group.is_truncated.tolist()),
            tokens_by_version=dict(zip(versions.tolist(), counts.tolist(), strict=True)),
            num_repetitive=sum(ends_in_loop(group.response_ids[group.response(i)]) for i in range(group.num_responses)),
        )

    @property
    def num_tokens(self) -> int:
        """Response tokens."""
        return sum(self.response_lengths)

    @property
    def num_truncated(self) -> int:
        return sum(self.is_truncated)

    @property
    def oldest_version(self) -> int:
        """Oldest policy version among the tokens."""
        return min(self.tokens_by_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroup:
    """A sampled group, as the rollout pool returns it.

    Attributes:
        columns: Reference to the columns of the `RolloutGroup`. The driver owns the object, so it outlives the worker.
        worker: Name of the rollout worker.
    """

    summary: GroupSummary
    columns: ObjectRef
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierResult:
    """Verdicts on one group, as a verifier worker returns them. Passed by value: nothing here grows with tokens.

    Attributes:
        elapsed_s: Seconds that the worker spent on the group.
        texts: Decoded responses; None unless they were requested.
        answers: Answer extracted from each response, None for a response without one. None altogether if they were not
            requested or the task's verifier extracts no answers.
        problems: The verifier's own words on each response that it failed on, None for the others; empty if it failed
            on none.
    """

    verdicts: Verdicts
    elapsed_s: float
    texts: tuple[str, ...] | None = None
    answers: tuple[str | None, ...] | None = None
    problems: tuple[str | None, ...] = ()

    @property
    def rewards(self) -> tuple[float, ...]:
        """Verifier reward of each response."""
        return tuple(self.verdicts.rewards.tolist())

    @property
    def outcomes(self) -> tuple[int, ...]:
        """`Outcome` value of each response."""
        return tuple(self.verdicts.outcomes.tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsBucket:
    """One 64 MiB bucket of a weights file; the last one may be smaller.

    Attributes:
        digest: xxh3 (128 bits) of the bucket's bytes.
        ref: Reference to a list of uint8 arrays that form the bucket end to end. Ray drops the object when the process
            that published it ends.
    """

    digest: bytes
    ref: ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedDelta:
    """Delta from a policy version to the next one.

    Attributes:
        checksum: Checksum of the file that the delta leads to.
        changed: Places of the tensors that changed, in the file's order, as a bit mask in little-endian order.
        num_bytes: Size of the delta in bytes.
        refs: References to lists of uint8 arrays, the encoded buckets. They end like those of buckets.
    """

    checksum: str
    changed: bytes
    num_bytes: int
    refs: tuple[ObjectRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPublication:
    """Published weights of one policy version: a full version, and the deltas that lead from it to this one.

    Attributes:
        manifest: Version, checksum and size.
        buckets: Buckets that form the safetensors file of the full version end to end. Empty if the learner keeps the
            weights and sends them on request; the checksum is then that of their layout.
        deltas: Deltas in the order in which they apply; empty if the buckets are those of this version.
        full_checksum: Checksum of the full version.
        digests: Digests of this version's buckets, in order.
    """

    manifest: WeightsManifest
    buckets: tuple[WeightsBucket, ...] = ()
    deltas: tuple[PublishedDelta, ...] = ()
    full_checksum: str = ""
    digests: tuple[bytes, ...] = ()

    @property
    def checksums(self) -> tuple[str, ...]:
        """Checksum of the full version, then that of the version after each delta."""
        return (self.full_checksum, *(delta.checksum for delta in self.deltas))

    def changed_since(self, checksum: str) -> list[int] | None:
        """Return the places of the tensors that changed since a version, in the file's order.

        Args:
            checksum: Checksum of the version.

        Returns:
            Places, ascending; None if the version is not one from which the deltas lead to this one.
        """
        if not self.deltas or checksum not in self.checksums:
            return None
        mask = 0
        for delta in self.deltas[self.checksums.index(checksum) :]:
            mask |= int.from_bytes(delta.changed, "little")
        return [place for place in range(mask.bit_length()) if mask >> place & 1]
