"""Reach of a program in the sandbox, with everything that this machine permits and in the state of a pod."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .attacks import results
from .pod import in_a_pod


@pytest.fixture(scope="module", params=["this machine", "pod"])
def reached(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = (
        dict(results())
        if request.param == "this machine"
        else json.loads(in_a_pod("-m", "tests.unit.rlad.sandbox.attacks"))
    )
    if "seccomp" not in found["event loop"]["barriers"]:
        pytest.skip("libseccomp is not installed")
    return found


def test_no_system_call_leads_out(reached: dict[str, Any]) -> None:
    assert json.loads(reached["system_calls"]["stdout"]) == []


def test_no_program_is_executed_and_no_file_of_others_is_read(reached: dict[str, Any]) -> None:
    assert (reached["shell"]["exit_code"], reached["shell"]["stdout"]) == (1, "")
    if "landlock_files" in reached["files"]["barriers"]:
        assert reached["files"]["stdout"] == "[]\n"


def test_three_threads_work_and_twenty_do_not(reached: dict[str, Any]) -> None:
    assert reached["three threads"]["stdout"] == "three\n"
    assert "twenty" not in reached["many threads"]["stdout"] or reached["many threads"]["ended"] == "killed"
    assert reached["many threads"]["exit_code"] != 0


def test_an_event_loop_works(reached: dict[str, Any]) -> None:
    assert reached["event loop"]["stdout"] == "slept\n"


@pytest.mark.parametrize("program", ["many files", "deleted files"])
def test_files_are_limited_in_total(reached: dict[str, Any], program: str) -> None:
    assert "written" not in reached[program]["stdout"]
    assert reached[program]["exit_code"] != 0


@pytest.mark.parametrize("program", ["memory of a tree", "processor time of a tree"])
def test_memory_and_processor_time_are_limited_over_all_processes(reached: dict[str, Any], program: str) -> None:
    """Without a process namespace no process is made at all."""
    result = reached[program]
    if "process_namespace" in result["barriers"]:
        expected = {"memory of a tree": ("killed", "memory"), "processor time of a tree": ("timeout", "CPU time")}
        assert (result["ended"], result["exceeded"]) == expected[program]
    else:
        assert "PermissionError" in result["stderr"]


def test_frames_and_memory_hold_nothing_of_the_sandbox(reached: dict[str, Any]) -> None:
    assert reached["frames"]["stdout"] == "[] [] []\n"
