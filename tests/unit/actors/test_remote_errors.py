"""Conversion of remote errors, made with Ray's own classes."""

from __future__ import annotations

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    OwnerDiedError,
    RayTaskError,
    TaskCancelledError,
)

from actors.remote_errors import as_rlad_error, reason_of, translated
from rlad.errors import DeadlineError, EngineError, VocabularyMismatchError, WorkerLostError


def as_ray_raises(cause: Exception) -> Exception:
    wrapped = RayTaskError(
        function_name="score", traceback_str="Traceback\n  many lines", cause=cause
    ).as_instanceof_cause()
    assert isinstance(wrapped, RayTaskError)
    return wrapped


@pytest.mark.parametrize(
    "project_error", [VocabularyMismatchError("two vocabularies"), EngineError("no"), WorkerLostError("engine gone")]
)
def test_project_error_is_returned_unchanged(project_error: Exception) -> None:
    error = as_rlad_error(as_ray_raises(project_error), who="teacher 't'")
    assert type(error) is type(project_error)
    assert str(error) == str(project_error)


def test_other_error_becomes_an_engine_error_that_names_callee_and_cause() -> None:
    error = as_rlad_error(as_ray_raises(KeyError("uid")), who="teacher 't'")
    assert type(error) is EngineError
    assert str(error) == "teacher 't' failed: KeyError: 'uid'"


@pytest.mark.parametrize(
    "lost", [ActorDiedError(), ActorUnavailableError("Actor is unavailable.", b"0" * 16), TaskCancelledError()]
)
def test_dead_callee_becomes_worker_lost(lost: Exception) -> None:
    assert type(as_rlad_error(lost, who="teacher 't'")) is WorkerLostError


@pytest.mark.parametrize(
    "kind", [ObjectLostError, ObjectReconstructionFailedError, ObjectFetchTimedOutError, OwnerDiedError]
)
def test_object_that_was_lost_with_its_node_becomes_worker_lost(kind: type[ObjectLostError]) -> None:
    lost = kind("f" * 40, owner_address=b"", call_site="call site")
    assert type(as_rlad_error(lost, who="teacher 't'")) is WorkerLostError
    as_argument = as_rlad_error(as_ray_raises(lost), who="teacher 't'")
    assert type(as_argument) is WorkerLostError
    assert str(as_argument).startswith("teacher 't' received a lost object")


@pytest.mark.parametrize("late", [TimeoutError(), GetTimeoutError("Get timed out")])
def test_timeout_becomes_a_deadline_error_that_names_the_callee(late: Exception) -> None:
    error = as_rlad_error(late, who="teacher 't'")
    assert type(error) is DeadlineError
    assert str(error).startswith("teacher 't' did not answer in time")


def test_translated_block_raises_the_converted_error_from_the_original() -> None:
    remote = as_ray_raises(KeyError("uid"))
    with pytest.raises(EngineError, match="teacher 't' failed") as caught, translated(who="teacher 't'"):
        raise remote
    assert caught.value.__cause__ is remote


def test_translated_block_raises_a_project_error_unchanged() -> None:
    project_error = EngineError("no receipt")
    with pytest.raises(EngineError) as caught, translated(who="teacher 't'"):
        raise project_error
    assert caught.value is project_error
    assert project_error.__cause__ is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (as_ray_raises(KeyError("uid")), "KeyError: 'uid'"),
        (WorkerLostError("class_name: Echo\n\tactor_id: 1\nThe actor died."), "The actor died."),
        (ValueError("long " * 100), "long " * 42 + "long..."),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_reason_is_one_line(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
