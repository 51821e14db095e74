"""Training batch: one micro-batch of the learner as a packed row.

Shape letters: S positions of the row, M sequences of the row, K tokens of the teacher's support, N positions with a
positive weight, H size of the teacher's hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlad.contracts import Array, ColumnarRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch(ColumnarRecord):
    """Micro-batch of the learner: M sequences (prompt and response) packed end to end in one row of S positions.

    Row position s predicts token `target_ids[s]`. A position that predicts a prompt token, or the first token of the
    next sequence, has weight 0. The weights include every normalizer (for example the mean over responses of the mean
    over tokens), counted over the whole optimizer step and all ranks. Therefore the gradient of the weighted sum of
    token losses does not depend on how the batch is cut.

    Attributes:
        token_ids: Input tokens, int64 [S].
        target_ids: Tokens to predict, int64 [S].
        position_ids: Positions, restarting at 0 with each sequence, int64 [S].
        sequence_offsets: Boundaries of the sequences, int32 [M + 1].
        behaviour_logprobs: Behaviour log-probabilities in nats, 0 where the weight is 0, float32 [S].
        teacher_logprobs: Teacher log-probabilities in nats, 0 where the weight is 0, float32 [S]; None without a
            teacher.
        advantages: Advantages, float32 [S].
        weights: Loss weights, float32 [S].
        reference_logprobs: Log-probabilities of the reference policy in nats, 0 where the weight is 0, float32 [S];
            None without a reference policy.
        is_imitated: True for tokens with a distillation term, bool [S]; None if all tokens have one.
        support_size: K; 0 without a teacher's support.
        support_ids: Tokens of the teacher's support, int64 [S * K]; None without a support.
        teacher_support_logprobs: Teacher log-probabilities of `support_ids`, 0 where the weight is 0, float32 [S * K];
            None without a support.
        teacher_tail_logprobs: Log of the teacher's probability outside the support, 0 where the weight is 0, -inf if
            the support is the whole vocabulary, float32 [S]; None without a support.
        hidden_size: H; 0 without the teacher's hidden states.
        teacher_hidden_states: Last hidden states of the teacher at the positions with a positive weight, in order,
            float32 [N * H], or uint16 [N * H] with the bits of bfloat16; None without them. `teacher_logprobs` is None
            with them.
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
    hidden_size: int = 0
    teacher_hidden_states: Array | None = None

    def __post_init__(self) -> None:
        size = len(self._require_array("token_ids", np.int64))
        self._require(size > 0, "the micro-batch is empty")
        for name in ("target_ids", "position_ids"):
            self._require_array(name, np.int64, size)
        optional = [name for name in ("teacher_logprobs", "reference_logprobs") if getattr(self, name) is not None]
        for name in ("behaviour_logprobs", "advantages", "weights", *optional):
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
        if self.teacher_hidden_states is not None:
            dtype = np.uint16 if self.teacher_hidden_states.dtype == np.uint16 else np.float32
            num_trained = int(np.count_nonzero(self.weights > 0))
            self._require_array("teacher_hidden_states", dtype, num_trained * self.hidden_size)
        offsets = self._require_array("sequence_offsets", np.int32)
        self._require(
            len(offsets) >= 2 and offsets[0] == 0 and offsets[-1] == size, f"sequence_offsets must run from 0 to {size}"
        )
        self._require(bool(np.all(np.diff(offsets) > 0)), "a sequence in the row is empty")

    @property
    def num_sequences(self) -> int:
        """Number of sequences in the row, M."""
        return len(self.sequence_offsets) - 1
