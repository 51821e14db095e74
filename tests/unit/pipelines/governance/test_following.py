"""A follower of an alias runs its command for each version, until it succeeds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.governance.following import AliasFollower
from rlad.errors import ConfigError, ModelNotFoundError
from rlad.registry.registry import ModelRegistry

from ..cli.test_registry_governance import EVALUATION, LINEAGE, MODEL

ROOT = Path(__file__).parents[4]


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """A registry with versions 1, in production, and 2."""
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(b"weights")
    opened = ModelRegistry.open(str(tmp_path / "registry"))
    for key in ("a", "b"):
        opened.add(MODEL, export, lineage=LINEAGE, evaluation=EVALUATION, idempotency_key=key)
    opened.promote(MODEL, 1, expected=None, reason="the first")
    return opened


class Command:
    """A command that writes its reference to a log, and fails while the file `fails` exists."""

    def __init__(self, folder: Path) -> None:
        self.log, self.fails = folder / "log", folder / "fails"
        self.log.touch()
        script = f"echo $RLAD_MODEL $RLAD_VERSION $RLAD_REFERENCE >> {self.log}; test ! -e {self.fails}"
        self.arguments = ["sh", "-c", script]

    def versions(self) -> list[int]:
        lines = [line.split() for line in self.log.read_text().splitlines()]
        assert all(line == [MODEL, line[1], f"{MODEL}@{line[1]}"] for line in lines)
        return [int(line[1]) for line in lines]


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def following(
    open_registry: Callable[[], ModelRegistry], command: Sequence[str], *, applied: int | None = None
) -> Iterator[None]:
    follower = AliasFollower(
        open_registry, name=MODEL, alias="production", command=command, applied=applied, every_s=0.02
    )
    stop = threading.Event()
    thread = threading.Thread(target=follower.follow, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_command_runs_once_for_each_version_in_production(registry: ModelRegistry, tmp_path: Path) -> None:
    command = Command(tmp_path)
    with following(lambda: registry, command.arguments):
        until(lambda: command.versions() == [1])
        registry.promote(MODEL, 2, expected=1, reason="better")
        until(lambda: command.versions() == [1, 2])
        registry.rollback(MODEL, reason="worse")
        until(lambda: command.versions() == [1, 2, 1])


def test_version_in_place_needs_no_command(registry: ModelRegistry, tmp_path: Path) -> None:
    command, looks = Command(tmp_path), threading.Semaphore(0)

    def opened() -> ModelRegistry:
        looks.release()
        return registry

    with following(opened, command.arguments, applied=1):
        for _ in range(5):
            assert looks.acquire(timeout=60)
        assert command.versions() == []
        registry.promote(MODEL, 2, expected=1, reason="better")
        until(lambda: command.versions() == [2])


def test_failed_command_is_repeated_until_it_succeeds(registry: ModelRegistry, tmp_path: Path) -> None:
    command = Command(tmp_path)
    command.fails.touch()
    with following(lambda: registry, command.arguments):
        until(lambda: len(command.versions()) >= 3)
        assert set(command.versions()) == {1}
        command.fails.unlink()
        # Moves on without a success for version 1, or after it.
        registry.promote(MODEL, 2, expected=1, reason="better")
        until(lambda: command.versions()[-1] == 2)
        registry.rollback(MODEL, reason="worse")
        until(lambda: command.versions()[-2:] == [2, 1])


def test_registry_that_cannot_be_read_is_read_again(registry: ModelRegistry, tmp_path: Path) -> None:
    command, looks = Command(tmp_path), iter(range(1000))

    def opened() -> ModelRegistry:
        if next(looks) in (1, 2):
            raise ConnectionError("the store does not answer")
        return registry

    with following(opened, command.arguments):
        until(lambda: command.versions() == [1])


@pytest.mark.parametrize("alias", ["1", "latest"])
def test_version_that_never_moves_is_refused(registry: ModelRegistry, alias: str) -> None:
    follower = AliasFollower(lambda: registry, name=MODEL, alias=alias, command=["true"], applied=None, every_s=1)
    with pytest.raises(ConfigError, match="expected an alias"):
        follower.follow(threading.Event())


def test_unknown_model_and_unknown_program_are_refused(registry: ModelRegistry) -> None:
    for name, command, error in (("other", ["true"], ModelNotFoundError), (MODEL, ["no-such-program"], ConfigError)):
        follower = AliasFollower(
            lambda: registry, name=name, alias="production", command=command, applied=None, every_s=1
        )
        with pytest.raises(error):
            follower.follow(threading.Event())


def test_signal_ends_the_follower_and_its_command(registry: ModelRegistry, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"echo $$ > {pid_file}.part; mv {pid_file}.part {pid_file}; exec sleep 600"
    command = [sys.executable, "-m", "pipelines", "registry", "follow", MODEL, "--every", "1", "--", "sh", "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLAD_REGISTRY": str(tmp_path / "registry")}
    with subprocess.Popen(command, env=environment, cwd=tmp_path) as process:
        until(pid_file.exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
