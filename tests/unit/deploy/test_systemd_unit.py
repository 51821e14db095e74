"""The daemon's unit: systemd takes it, and leaves runs the time to end that a schedule leaves them."""

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


def test_only_the_daemon_is_told_to_end_and_it_has_the_time_to_end_its_runs(service: configparser.SectionProxy) -> None:
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= 2 * ScheduleConfig.model_fields["stop_grace_s"].default
    assert service["ExecStart"].endswith("rlad schedule serve")


def test_it_holds_no_secret(service: configparser.SectionProxy) -> None:
    assert "Environment" not in service
    assert service["EnvironmentFile"].startswith("/etc/")


def test_systemd_takes_it(tmp_path: Path) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/rlad/.venv/bin/rlad", "/bin/true"))  # what it starts has to exist
    result = subprocess.run([verifier, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
