"""The commands of the README and of the tutorial, run as written in a fresh copy of the checkout."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlad.starters.cache import starters_folder

from .documents import ROOT, ShellBlock, shell_blocks

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

ENVIRONMENT = Path(sys.prefix)
TUTORIAL = [block for block in shell_blocks(ROOT / "docs/tutorial.md") if block.reason is None]
README = [block for block in shell_blocks(ROOT / "README.md") if block.reason is None]
# `ray stop` ends every Ray process that it sees, and `ray start` takes fixed ports: such a block gets its own.
ISOLATED = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
# Both documents share one copy, and a command that the tutorial has run is not run again for the README.
SHELL_STATE = ("source ", "export ", "cd ")


@dataclass(slots=True)
class Checkout:
    """A fresh copy of the files that git knows.

    Attributes:
        folder: The copy.
        variables: Environment of its shell.
        done: Commands that have been run in it.
    """

    folder: Path
    variables: dict[str, str]
    done: set[str] = field(default_factory=set)

    def run(self, block: ShellBlock) -> None:
        """Run the commands of a block that have not been run in this copy yet."""
        commands = [text for text in block.commands() if text.startswith(SHELL_STATE) or _bare(text) not in self.done]
        isolated = any(_bare(text).startswith("ray ") for text in commands)
        script = "\n".join(["set -euo pipefail", *(["ip link set lo up"] if isolated else []), "set -x", *commands])
        process = subprocess.Popen(
            [*(ISOLATED if isolated else ()), "bash", "-c", script],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate()
        finally:
            if process.poll() is None:  # the test's timeout
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, f"{block} failed with status {process.returncode}:\n{output[-8000:]}"
        self.done.update(map(_bare, commands))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    if not (ENVIRONMENT / ".installed").is_file():
        pytest.skip("needs an environment that `make setup` has made, since the commands begin with it")
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
            # Older than the stamps of the environment: `make setup` must not make the shared environment again.
            os.utime(folder / name, (0, 0))
    (folder / ".venv").symlink_to(ENVIRONMENT)
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="rlad-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        home = folder / "home"
        home.mkdir()
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RLAD_"))}
        variables |= {
            "HOME": str(home),
            "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            # Starter models, and what vLLM knows of their classes, are shared with the session; nothing else is.
            "RLAD_CACHE": str(starters_folder().parent),
            "VLLM_CACHE_ROOT": os.environ.get("VLLM_CACHE_ROOT", str(Path.home() / ".cache" / "vllm")),
            "RAY_TMPDIR": ray_folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        yield Checkout(folder, variables)


@pytest.mark.parametrize("block", TUTORIAL, ids=str)
def test_tutorial_commands_run_as_written(checkout: Checkout, block: ShellBlock) -> None:
    checkout.run(block)


@pytest.mark.parametrize("block", README, ids=str)
def test_readme_commands_run_as_written(checkout: Checkout, block: ShellBlock) -> None:
    if any(_bare(text).startswith("ray ") for text in block.commands()) and not _can_isolate():
        pytest.skip("needs process and network namespaces (unshare): `ray stop` would end other Ray clusters")
    checkout.run(block)


def test_tutorial_leaves_the_results_that_it_describes(checkout: Checkout) -> None:
    if "rlad ledger runs/grpo" not in checkout.done:
        pytest.skip("needs the tutorial's commands to have run")
    for name in (
        "runs/smoke/report.html",
        "runs/smoke/export",
        "runs/smoke/evaluation/responses-evaluation.jsonl",
        "runs/grpo/export",
    ):
        assert (checkout.folder / name).exists()


def _bare(command: str) -> str:
    """A command without its comment and surplus blanks."""
    return " ".join(command.partition("  #")[0].split())


def _can_isolate() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return (
        subprocess.run([*ISOLATED, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0
    )
