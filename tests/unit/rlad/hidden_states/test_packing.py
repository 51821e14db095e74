"""Hidden states of a teacher in the records and in the learner's rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlad.contracts import Array, ScoredGroup, TeacherScores, finite_rows
from rlad.errors import ContractError
from rlad.models.hidden_arrays import to_array, to_tensor
from rlad.objectives import build_objective
from rlad.packing import BatchRules, LossNormalizer, build_training_batch, dummy_batch

from ..scored_groups import every_sequence, scored_group

HIDDEN = 4
LAYER = "ab" * 32
OBJECTIVE = build_objective({"name": "opd", "estimator": "full"}).config
RULES = BatchRules(objective=OBJECTIVE, output_layer=LAYER)


def hidden_group(uid: str, lengths: list[int], *, dtype: torch.dtype = torch.float32) -> tuple[ScoredGroup, Array]:
    """Return a group whose hidden states are numbers that occur once, and the states, [T, H]."""
    scored = scored_group(uid, lengths)
    size = scored.group.num_tokens
    states = to_array(torch.arange(1, size * HIDDEN + 1, dtype=torch.float32).reshape(size, HIDDEN).to(dtype))
    return with_states(scored, states), states


def with_states(scored: ScoredGroup, states: Array, *, layer: str = LAYER) -> ScoredGroup:
    scores = TeacherScores(
        uid=scored.group.uid,
        attempt=0,
        teacher="t",
        logprobs=np.full(scored.group.num_tokens, np.nan, np.float32),
        hidden_size=HIDDEN,
        hidden_states=states.reshape(-1),
        output_layer=layer,
    )
    return replace(scored, teacher_scores=scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_holds_the_state_of_each_trained_position_in_order(dtype: torch.dtype) -> None:
    (first, states), (second, _) = hidden_group("a", [3, 2], dtype=dtype), hidden_group("b", [1, 0], dtype=dtype)
    groups = {"a": first, "b": second}
    sequences = [("a", 1), ("b", 0), ("a", 0), ("b", 1)]
    batch, counts = build_training_batch(
        groups, sequences, normalizer=LossNormalizer(num_responses=4, num_tokens=6), rules=RULES
    )
    assert batch.teacher_hidden_states is not None
    rows = batch.teacher_hidden_states.reshape(-1, HIDDEN)
    assert rows.dtype == states.dtype
    np.testing.assert_array_equal(rows, np.concatenate([states[3:5], states[:1], states[:3]]))
    assert len(rows) == np.count_nonzero(batch.weights) == counts.trained_tokens
    assert (batch.teacher_logprobs, batch.support_size, batch.hidden_size) == (None, 0, HIDDEN)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_that_is_not_finite_is_masked_and_counted(dtype: torch.dtype, bad: float) -> None:
    scored, _ = hidden_group("a", [3])
    values = torch.ones((3, HIDDEN), dtype=dtype)
    values[1, 2] = bad
    batch, counts = build_training_batch(
        {"a": with_states(scored, to_array(values))},
        [("a", 0)],
        normalizer=LossNormalizer(num_responses=1, num_tokens=3),
        rules=RULES,
    )
    assert counts.missing_teacher_tokens == 1
    assert np.count_nonzero(batch.weights) == 2
    np.testing.assert_array_equal(np.flatnonzero(batch.weights), [2, 4])
    assert batch.teacher_hidden_states is not None
    assert len(batch.teacher_hidden_states) == 2 * HIDDEN


def test_states_of_another_output_layer_are_refused() -> None:
    scored, states = hidden_group("a", [2])
    normalizer = LossNormalizer(num_responses=1, num_tokens=2)
    other = with_states(scored, states, layer="cd" * 32)
    with pytest.raises(ContractError, match="belong to output layer cdcd.*; the learner has abab"):
        build_training_batch({"a": other}, [("a", 0)], normalizer=normalizer, rules=RULES)
    with pytest.raises(ContractError, match="belong to output layer None; the learner has abab"):
        build_training_batch({"a": scored_group("a", [2])}, [("a", 0)], normalizer=normalizer, rules=RULES)
    with pytest.raises(ContractError, match="belong to output layer abab.*; the learner has None"):
        build_training_batch({"a": scored}, [("a", 0)], normalizer=normalizer, rules=replace(RULES, output_layer=None))


def test_dummy_row_has_no_columns_of_the_teacher() -> None:
    scored, states = hidden_group("a", [2])
    unknown = with_states(scored, np.full_like(states, np.nan))
    batch, _ = build_training_batch(
        {"a": unknown}, every_sequence({"a": unknown}), normalizer=LossNormalizer(num_responses=1), rules=RULES
    )
    for dummy in (batch, dummy_batch(OBJECTIVE, output_layer=LAYER)):
        assert dummy.teacher_logprobs is dummy.support_ids is dummy.teacher_hidden_states is None
        assert dummy.weights.tolist() == [0.0]


def test_states_travel_between_torch_and_numpy_bit_for_bit() -> None:
    values = torch.tensor([[1.0, -2.5], [float("nan"), 3e38], [-0.0, 1e-40]])
    for dtype in (torch.float32, torch.bfloat16):
        there = to_array(values.to(dtype))
        back = to_tensor(there)
        assert back.dtype == dtype
        np.testing.assert_array_equal(to_array(back), there)
        torch.testing.assert_close(back, values.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert finite_rows(to_array(values.bfloat16())).tolist() == [True, False, True]


def test_scores_need_all_columns_of_hidden_states_and_none_of_a_support() -> None:
    plain = {"uid": "a", "attempt": 0, "teacher": "t", "logprobs": np.zeros(2, np.float32)}
    states = np.zeros(2 * HIDDEN, np.uint16)
    with pytest.raises(ContractError, match="must be given together"):
        TeacherScores(**plain, hidden_size=HIDDEN, hidden_states=states)
    with pytest.raises(ContractError, match="hidden_states must have 10 entries, got 8"):
        TeacherScores(**plain, hidden_size=5, hidden_states=states, output_layer=LAYER)
    with pytest.raises(ContractError, match="exclude each other"):
        TeacherScores(
            **plain,
            hidden_size=HIDDEN,
            hidden_states=states,
            output_layer=LAYER,
            support_size=1,
            support_ids=np.zeros(2, np.int32),
            support_logprobs=np.zeros(2, np.float32),
            tail_logprobs=np.zeros(2, np.float32),
        )
