"""Wire format of the teacher service: round trips are exact to the bit, and invalid bodies are refused."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from rlad.contracts import RolloutGroup, TeacherScores
from rlad.errors import (
    AccessError,
    ContractError,
    DeadlineError,
    EngineError,
    PlanError,
    QuotaError,
    RladError,
    VocabularyMismatchError,
    WeightsMismatchError,
    WorkerLostError,
)
from rlad.teacher.wire_format import ScoringRequest, error_of, problem_of, scores_from_bytes, scores_to_bytes

WORDS = {"uid": "d:0:1", "attempt": 2, "temperature": 0.7, "support": None, "tokenizer": "abc", "client": "run"}
ARRAYS = {
    "prompt_ids": np.array([5, 6], np.int32),
    "response_ids": np.array([7, 8, 9], np.int32),
    "response_offsets": np.array([0, 3, 3], np.int64),
}


def request_bytes(words: object = WORDS, **arrays: np.ndarray) -> bytes:
    body: bytes = save({**ARRAYS, **arrays}, metadata={"words": json.dumps(words)})
    return body


def group(*, temperature: float = 1.0) -> RolloutGroup:
    return RolloutGroup(
        uid="d:0:7",
        attempt=3,
        prompt_id="secret-id",
        task="t",
        answer="secret-answer",
        temperature=temperature,
        prompt_ids=np.array([1, 2, 3], np.int32),
        response_ids=np.array([4, 5, 2**31 - 1], np.int32),
        response_offsets=np.array([0, 2, 2, 3], np.int64),
        behaviour_logprobs=np.array([-0.5, -1.5, -2.5], np.float32),
        policy_versions=np.array([4, 4, 4], np.int32),
        finish_reasons=np.array([0, 1, 0], np.uint8),
    )


@pytest.mark.parametrize("support", [None, 5, "full"])
def test_request_round_trip_is_exact_and_omits_private_fields(support: int | None) -> None:
    sent = group(temperature=0.1 + 0.2)
    body = ScoringRequest(group=sent, tokenizer="abc", client="run-1", support=support).to_bytes()
    assert b"secret" not in body
    assert len(body) < 600, "4 bytes per token and a header; log-probabilities are not sent"
    received = ScoringRequest.from_bytes(body)
    assert (received.tokenizer, received.client, received.support) == ("abc", "run-1", support)
    assert (received.group.uid, received.group.attempt, received.group.temperature) == ("d:0:7", 3, 0.1 + 0.2)
    for name in ("prompt_ids", "response_ids", "response_offsets"):
        assert getattr(received.group, name).tobytes() == getattr(sent, name).tobytes()


@pytest.mark.parametrize("support", [0, 2])
def test_scores_round_trip_keeps_every_bit_of_nans(support: int) -> None:
    # A NaN with a payload, which must not change.
    logprobs = np.frombuffer(struct.pack("<4I", 0x7FC00001, 0xFF800000, 0x80000000, 0xBF000001), np.float32)
    columns = {
        "support_ids": np.arange(8, dtype=np.int32),
        "support_logprobs": np.tile(logprobs, 2),
        "tail_logprobs": logprobs[::-1],
    }
    sent = TeacherScores(
        uid="u", attempt=1, teacher="t", logprobs=logprobs, support_size=support, **(columns if support else {})
    )
    received = scores_from_bytes(scores_to_bytes(sent))
    assert (received.uid, received.attempt, received.teacher, received.support_size) == ("u", 1, "t", support)
    assert received.logprobs.tobytes() == logprobs.tobytes()
    for name, column in columns.items() if support else ():
        assert getattr(received, name).tobytes() == np.ascontiguousarray(column).tobytes()


def test_request_without_tokens_is_valid() -> None:
    empty = {"response_ids": np.zeros(0, np.int32), "response_offsets": np.zeros(3, np.int64)}
    assert ScoringRequest.from_bytes(request_bytes(**empty)).group.num_tokens == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        pickle.dumps({"prompt_ids": [1]}),
        request_bytes()[:-1],
        request_bytes() + b"0",
        struct.pack("<Q", 1 << 60) + b"{}",
        save(ARRAYS),
        save(ARRAYS, metadata={"words": "[]"}),
        request_bytes({**WORDS, "support": 0}),
        request_bytes({**WORDS, "support": "half"}),
        request_bytes({**WORDS, "temperature": 0}),
        request_bytes({**WORDS, "temperature": float("inf")}),
        request_bytes({**WORDS, "uid": ""}),
        request_bytes({**WORDS, "client": "x" * 201}),
        request_bytes({**WORDS, "more": 1}),
        request_bytes({key: word for key, word in WORDS.items() if key != "tokenizer"}),
        request_bytes(prompt_ids=np.zeros(0, np.int32)),
        request_bytes(prompt_ids=np.array([5, 6], np.int64)),
        request_bytes(prompt_ids=np.array([[5, 6]], np.int32)),
        request_bytes(response_offsets=np.array([0, 4], np.int64)),
        request_bytes(response_offsets=np.array([0, 3, 2, 3], np.int64)),
        request_bytes(response_offsets=np.array([], np.int64)),
        request_bytes(answers=np.zeros(1, np.int32)),
    ],
)
def test_invalid_body_is_refused(body: bytes) -> None:
    with pytest.raises(ContractError):
        ScoringRequest.from_bytes(body)


def test_scores_with_unexpected_arrays_are_refused() -> None:
    words = {"uid": "u", "attempt": 0, "teacher": "t", "support_size": 0}
    with pytest.raises(ContractError, match="unexpected arrays"):
        scores_from_bytes(save({"probabilities": np.zeros(1, np.float32)}, metadata={"words": json.dumps(words)}))


@pytest.mark.parametrize(
    ("error", "status", "restored_type"),
    [
        (AccessError("no"), 401, AccessError),
        (VocabularyMismatchError("no"), 409, VocabularyMismatchError),
        (ContractError("no"), 422, ContractError),
        (QuotaError("no"), 429, QuotaError),
        (WeightsMismatchError("no"), 500, EngineError),
        (PlanError("no"), 500, EngineError),
        (WorkerLostError("no"), 503, WorkerLostError),
        (DeadlineError("no"), 504, DeadlineError),
    ],
)
def test_error_round_trip_restores_its_type(error: RladError, status: int, restored_type: type[RladError]) -> None:
    found, problem = problem_of(error)
    assert found == status
    received = error_of(found, problem.model_dump_json().encode(), who="the teacher")
    assert (type(received), str(received)) == (restored_type, "no")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, AccessError),
        (429, QuotaError),
        (502, WorkerLostError),
        (503, WorkerLostError),
        (404, EngineError),
        (500, EngineError),
    ],
)
def test_error_of_a_proxy_is_restored_by_its_status(status: int, kind: type[RladError]) -> None:
    error = error_of(status, b"<html>" + b"x" * 5000, who="the teacher at https://host/t")
    assert type(error) is kind
    assert str(error).startswith(f"the teacher at https://host/t answered with status {status}: <html>xxx")
    assert len(str(error)) < 400
