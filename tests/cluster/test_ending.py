"""Tests of SIGTERM, as sent to a stopped job or an evicted pod: the run has time to shut down its pools."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The clean-up takes longer than the three seconds after which Ray's own signal handler aborts.
PROGRAM = """
import asyncio
from pipelines.cli import main as cli
from pipelines.cluster.connection import connected
from rlad.config import ClusterConfig

async def work():
    try:
        print("working", flush=True)
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(4)
        print("pools are down", flush=True)

@cli.app.command()
def work_on_a_cluster():
    with connected(ClusterConfig(num_cpus=1)):
        asyncio.run(work())

cli.main()
"""


def test_run_has_time_to_shut_down_its_pools_after_sigterm() -> None:
    command = [sys.executable, "-c", PROGRAM, "work-on-a-cluster"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n", process.communicate()
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
    assert stdout == "pools are down\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert stderr.endswith("interrupted: checkpoints are kept; continue with the same command and --resume\n")
    assert "SIGTERM received" not in stderr
