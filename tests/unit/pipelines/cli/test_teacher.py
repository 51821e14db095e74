"""Output of `rlad teacher list`."""

from __future__ import annotations

import io
from collections import Counter

from rich.console import Console

from actors.teacher.quota import TeacherStats
from pipelines.cli.teacher import print_services
from pipelines.teacher_service import ServiceState


def test_list_is_complete_at_80_columns() -> None:
    name, url = (
        "qwen3-235b-a22b-teacher",
        "https://ray-head.training.svc.cluster.example.com:8000/qwen3-235b-a22b-teacher",
    )
    stats = TeacherStats(num_groups=123_456_789, ongoing=Counter({"a": 12_345}))
    states = [
        ServiceState(name=name, status="DEPLOY_FAILED", message="", replicas={"RUNNING": 1234}, url=url, stats=stats),
        ServiceState(name="kk", status="RUNNING", message="", replicas={}, url=None),
    ]
    output = io.StringIO()
    print_services(states, Console(file=output, width=80))
    *table, last = output.getvalue().splitlines()
    assert max(len(line) for line in table) <= 80
    assert "…" not in output.getvalue()
    [row] = [line for line in table if name in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        name,
        "DEPLOY_FAILED",
        "1234",
        "123456789",
        "12345",
    ]
    [other] = [line for line in table if "kk" in line]
    assert [cell.strip() for cell in other.strip("│").split("│")] == ["kk", "RUNNING", "0", "", ""]
    assert last == f"{name}: {url}", "a URL stays on one line, so that it can be copied"
