"""Systemd unit of the schedule daemon: valid, and with enough time to stop runs."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from rlad.config.schedule import ScheduleConfig

UNIT = Path(__file__).parents[3] / "deploy" / "systemd" / "rlad-schedule.service"


@pytest.fixture
def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser["Service"]


def test_only_the_daemon_is_signalled_and_it_has_time_to_stop_its_runs(service: configparser.SectionProxy) -> None:
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= 2 * ScheduleConfig.model_fields["stop_grace_s"].default
    assert service["ExecStart"].endswith("rlad schedule serve")


def test_unit_contains_no_secret(service: configparser.SectionProxy) -> None:
    assert "Environment" not in service
    assert service["EnvironmentFile"].startswith("/etc/")


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/rlad/.venv/bin/rlad", "/bin/true"))  # the executable must exist
    result = subprocess.run([verifier, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
