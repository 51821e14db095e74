"""Serve application built from the `args` of a Serve config file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve import Application

from actors.teacher.application import build
from actors.teacher.deployment import teacher_application
from actors.teacher.replica import TeacherServer
from rlad.config import TeacherConfig
from rlad.errors import ConfigError, PlanError


def deployment_of(application: Application) -> Any:
    return application._bound_deployment


def test_resources_and_pool_become_replica_options(make_model: Callable[..., Path]) -> None:
    args = {
        "path": str(make_model()),
        "replicas": 3,
        "gpus_per_replica": 2,
        "cpus_per_replica": 8,
        "pool": "teacher-math",
        "max_ongoing_requests": 10,
    }
    deployment = deployment_of(build(args))
    assert deployment.func_or_class is TeacherServer
    assert deployment.num_replicas == 3
    assert deployment.name == "SharedTeacher"
    assert deployment.max_ongoing_requests == 10
    assert deployment.ray_actor_options == {
        "num_cpus": 8.0,
        "num_gpus": 2.0,
        "label_selector": {"rlad.io/pool": "teacher-math"},
    }
    (config,) = deployment.init_args
    assert (config.path, config.replicas) == (str(make_model()), 1), (
        "the number of replicas is a setting of Serve, not of a replica"
    )


def test_max_replicas_enables_autoscaling_between_the_bounds(make_model: Callable[..., Path]) -> None:
    # The client quota is half of the 10 requests, and the autoscaling target half of the quota, rounded down.
    deployment = deployment_of(
        build({"path": str(make_model()), "replicas": 2, "max_replicas": 6, "max_ongoing_requests": 10})
    )
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 6, 2)
    assert deployment.ray_actor_options["label_selector"] == {}


def test_slow_health_check_costs_no_replica(make_model: Callable[..., Path]) -> None:
    """Serve replaces a replica after three health checks in a row that exceed the timeout."""
    for application in (
        build({"path": str(make_model())}),
        teacher_application(TeacherConfig(path=str(make_model())), label_selector={}),
    ):
        assert deployment_of(application)._deployment_config.health_check_timeout_s == 60


def test_http_adds_a_gateway_and_serve_stores_no_token(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAD_TEACHER_TOKEN", "a-token-that-must-not-be-kept")
    gateway = deployment_of(build({"path": str(make_model()), "http": {}}))
    assert (gateway.name, gateway.func_or_class.__name__) == ("TeacherGateway", "TeacherGateway")
    replicas, config, timeout_s = gateway.init_args
    assert (deployment_of(replicas).name, timeout_s) == ("SharedTeacher", 300)
    assert b"must-not-be-kept" not in cloudpickle.dumps((config, timeout_s))


def test_misspelt_setting_and_missing_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean `replicas`"):
        build({"path": "/nowhere", "replica": 2})
    with pytest.raises(PlanError, match="no model at '/nowhere'"):
        build({"path": "/nowhere"})
