"""Teacher sections: exactly one of `path`, `service` and `url`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlad.config import (
    RemoteTeacherConfig,
    RunConfig,
    ServiceTeacherConfig,
    TeacherConfig,
    TeacherServiceConfig,
    load_run_config,
)
from rlad.errors import ConfigError

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("teacher.service=kk", ServiceTeacherConfig),
        ("teacher.url=https://host:8443/kk", RemoteTeacherConfig),
        ("teacher.replicas=1", TeacherConfig),
    ],
)
def test_override_replaces_teacher_section_and_survives_serialization(override: str, kind: type) -> None:
    config = load_run_config(SMOKE, [override, "teacher.timeout_s=20"])
    assert type(config.teacher) is kind
    assert config.teacher is not None
    assert config.teacher.timeout_s == 20
    assert RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_shared_teachers_are_not_deployed_by_the_run() -> None:
    both = {
        "own": {"path": "starter:kk-smoke/teacher"},
        "there": {"service": "kk"},
        "elsewhere": {"url": "https://host/kk"},
    }
    settings = load_run_config(SMOKE).model_dump() | {
        "teacher": None,
        "teachers": both,
        "reference": {"engine": "transformers"},
    }
    config = RunConfig.model_validate(settings | {"objective": {"name": "trrd", "reference_kl": 0.01}})
    assert list(config.scoring_pools) == list(config.frozen_models) == ["teacher-own", "reference"]
    assert {pool: shared.label for pool, shared in config.shared_teachers.items()} == {
        "teacher-there": "service kk",
        "teacher-elsewhere": "https://host/kk",
    }
    assert config.teacher_pools == {"own": "teacher-own", "there": "teacher-there", "elsewhere": "teacher-elsewhere"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["teacher.path=/a", "teacher.service=kk"],
            r"teacher: a teacher requires exactly one of `path` .*, `service` .* and `url` .*; got path, service",
        ),
        (["teacher.service=kk", "teacher.url=https://h/k"], "requires exactly one of"),
        (
            ["teacher.service=kk", "teacher.replicas=2"],
            "teacher.replicas: unknown key, although another kind of this section has it",
        ),
        (["teacher.service=kk", "teacher.fingerprnt=2"], "teacher.fingerprnt: unknown key; did you mean `fingerprint`"),
        (["teacher.service=a/b"], "teacher.service: String should match pattern"),
        (["teacher.url=ftp://host/kk"], "teacher.url: String should match pattern"),
        (["teacher.url=https://user:secret@host/kk"], "teacher.url: is or contains a URL with credentials"),
        (
            ["teacher.url=https://host/kk?token=secret"],
            "teacher.url: is or contains a URL with a credential in its query",
        ),
        (["teacher.url=https://host/kk?a=b"], "teacher.url: String should match pattern"),
    ],
)
def test_invalid_teacher_section_is_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(SMOKE, overrides)


def test_offline_run_requires_teacher_path() -> None:
    offline = SMOKE.with_name("offline_kk_cpu.yaml")
    with pytest.raises(ConfigError, match="a shared teacher only scores; got service kk. Set teacher.path"):
        load_run_config(offline, ["teacher.service=kk"])


@pytest.mark.parametrize(
    ("settings", "quota"),
    [({}, 32), ({"max_ongoing_requests": 1}, 1), ({"max_groups_per_client": 5}, 5), ({"max_ongoing_requests": 7}, 3)],
)
def test_client_quota_defaults_to_half_a_replica(settings: dict[str, Any], quota: int) -> None:
    assert TeacherServiceConfig(path="/t", **settings).client_quota == quota


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 3, "max_replicas": 2}, "got max_replicas 2 and replicas 3"),
        ({"target_groups": 3}, "target_groups requires max_replicas; got target_groups 3 alone"),
        ({"max_groups_per_client": 65}, "got max_groups_per_client 65 and max_ongoing_requests 64"),
        ({"http": {"port": 0}}, "greater than or equal to 1"),
    ],
)
def test_inconsistent_service_bounds_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherServiceConfig(path="/t", **settings)
