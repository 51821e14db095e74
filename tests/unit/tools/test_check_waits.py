"""The check for waits without a deadline, on small modules."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tools.check_waits import check_source

ROOT = Path(__file__).parents[3]


def found(body: str) -> list[str]:
    """Return the description of each finding in the body of a coroutine."""
    source = "async def work(self):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return [finding.message.partition(" waits")[0] for finding in check_source("module.py", source)]


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("ray.get(ref)", "`ray.get()`"),
        ("ray.wait(refs, num_returns=1)", "`ray.wait()`"),
        ("subprocess.run(['true'])", "`subprocess.run()`"),
        ("subprocess.check_output(['true'])", "`subprocess.check_output()`"),
        ("process.communicate()", "`.communicate()`"),
        ("self._ended.wait()", "`.wait()`"),
        ("await event.wait()", "`.wait()`"),
        ("items.get()", "`.get()`"),
        ("items.get(block=True)", "`.get()`"),
        ("thread.join()", "`.join()`"),
        ("lock.acquire()", "`.acquire()`"),
        ("lock.acquire(blocking=True)", "`.acquire()`"),
        ("fcntl.flock(file, fcntl.LOCK_EX)", "`fcntl.flock()`"),
        ("await asyncio.wait({task})", "`asyncio.wait()`"),
        ("await actor.work.remote(1)", "`await ....remote()`"),
        ("answer = await actor.work.remote()", "`await ....remote()`"),
        ("ref = actor.work.remote()\nawait ref", "`await ref`, an object reference,"),
        ("first, second = actor.work.remote()\nawait second", "`await second`, an object reference,"),
        ("async with asyncio.timeout(1):\n    ray.get(ref)", "`ray.get()`"),  # it blocks the event loop
        ("async with self._lock:\n    await actor.work.remote()", "`await ....remote()`"),
    ],
)
def test_wait_without_a_deadline_is_found(call: str, what: str) -> None:
    assert found(call) == [what]


@pytest.mark.parametrize(
    "call",
    [
        "ray.get(ref, timeout=5)",
        "ray.wait(refs, timeout=5)",
        "subprocess.run(['true'], timeout=5)",
        "subprocess.run(['true'], **options)",
        "self._ended.wait(5)",
        "self._ended.wait(timeout=5)",
        "items.get(timeout=5)",
        "settings.get('key')",
        "', '.join(names)",
        "thread.join(5)",
        "lock.acquire(timeout=0)",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(file, fcntl.LOCK_UN)",
        "await asyncio.wait({task}, timeout=5)",
        "await asyncio.wait_for(event.wait(), 5)",
        "await within(actor.work.remote(), deadline_s=5)",
        "async with asyncio.timeout(5):\n    await actor.work.remote()",
        "async with asyncio.timeout(5) as deadline:\n    await event.wait()",
        "ref = actor.work.remote()\nawait within(ref, deadline_s=5)",
        "ref = other()\nawait ref",
    ],
)
def test_wait_with_a_deadline_is_accepted(call: str) -> None:
    assert found(call) == []


def test_deadline_of_a_function_does_not_cover_another_one_inside_it() -> None:
    nested = """
    async with asyncio.timeout(5):
        async def later():
            await actor.work.remote()
    """
    assert found(nested) == ["`await ....remote()`"]


def test_comment_with_a_reason_allows_a_wait() -> None:
    assert found("thread.join()  # unlimited wait: it is a daemon") == []
    assert found("# unlimited wait: it is a daemon\nthread.join()") == []
    assert found("subprocess.run(\n    ['true'],\n    check=True,  # unlimited wait: ends with its input\n)") == []


def test_comment_without_a_reason_or_without_a_wait_is_found() -> None:
    no_reason, no_wait = "thread.join()  # unlimited wait:", "thread.join(5)  # unlimited wait: it is a daemon"
    [first] = check_source("module.py", no_reason)
    [second] = check_source("module.py", no_wait)
    assert str(first) == "module.py:1: `# unlimited wait:` requires a reason"
    assert str(second) == "module.py:1: `# unlimited wait:` allows no wait: remove it"


def test_repository_has_no_wait_without_a_deadline() -> None:
    checked = subprocess.run([sys.executable, "-m", "tools.check_waits"], cwd=ROOT, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout) == (0, b"")
