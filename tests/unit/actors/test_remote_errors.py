"""Errors as Ray gives them, made by Ray's own classes."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError, TaskCancelledError

from actors.remote_errors import as_rlad_error, translated
from rlad.errors import DeadlineError, EngineError, VocabularyMismatchError, WorkerLostError


def as_ray_raises(cause: Exception) -> Exception:
    wrapped = RayTaskError(
        function_name="score", traceback_str="Traceback\n  many lines", cause=cause
    ).as_instanceof_cause()
    assert isinstance(wrapped, RayTaskError)
    return wrapped


@pytest.mark.parametrize(
    "ours", [VocabularyMismatchError("two vocabularies"), EngineError("no"), WorkerLostError("engine gone")]
)
def test_error_of_ours_comes_back_as_itself(ours: Exception) -> None:
    error = as_rlad_error(as_ray_raises(ours), who="teacher 't'")
    assert type(error) is type(ours)
    assert str(error) == str(ours)


def test_error_of_others_becomes_an_engine_error_that_names_callee_and_cause() -> None:
    error = as_rlad_error(as_ray_raises(KeyError("uid")), who="teacher 't'")
    assert type(error) is EngineError
    assert str(error) == "teacher 't' failed: KeyError: 'uid'"


@pytest.mark.parametrize(
    "lost", [ActorDiedError(), ActorUnavailableError("Actor is unavailable.", b"0" * 16), TaskCancelledError()]
)
def test_dead_callee_is_a_lost_worker(lost: Exception) -> None:
    assert type(as_rlad_error(lost, who="teacher 't'")) is WorkerLostError


@pytest.mark.parametrize("late", [TimeoutError(), GetTimeoutError("Get timed out")])
def test_timeout_is_a_deadline_that_names_the_callee(late: Exception) -> None:
    error = as_rlad_error(late, who="teacher 't'")
    assert type(error) is DeadlineError
    assert "teacher 't'" in str(error)


def test_block_gives_the_translated_error_with_the_original_behind_it() -> None:
    remote = as_ray_raises(KeyError("uid"))
    with pytest.raises(EngineError, match="teacher 't' failed") as caught, translated(who="teacher 't'"):
        raise remote
    assert caught.value.__cause__ is remote


def test_block_passes_an_error_of_ours_on_untouched() -> None:
    ours = EngineError("no receipt")
    with pytest.raises(EngineError) as caught, translated(who="teacher 't'"):
        raise ours
    assert caught.value is ours
    assert ours.__cause__ is None
