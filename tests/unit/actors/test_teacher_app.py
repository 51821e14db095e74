"""The application that a Serve config file names is the teacher that its `args` describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.serve import Application

from actors.teacher_app import build
from actors.teacher_server import TeacherServer
from rlad.errors import ConfigError, PlanError


def deployment_of(application: Application) -> Any:
    return application._bound_deployment


def test_resources_and_pool_become_the_replicas_options(make_model: Callable[..., Path]) -> None:
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
    assert deployment.ray_actor_options == {"num_cpus": 8.0, "num_gpus": 2.0, "label_selector": {"rlad.io/pool": "teacher-math"}}
    (config,) = deployment.init_args
    assert (config.path, config.replicas) == (str(make_model()), 1), "another number of replicas does not restart those that run"


def test_a_maximum_lets_serve_scale_between_the_bounds(make_model: Callable[..., Path]) -> None:
    deployment = deployment_of(build({"path": str(make_model()), "replicas": 2, "max_replicas": 6, "max_ongoing_requests": 10}))
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 6, 2)
    assert deployment.ray_actor_options["label_selector"] == {}


def test_a_misspelt_setting_and_a_missing_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean `replicas`"):
        build({"path": "/nowhere", "replica": 2})
    with pytest.raises(PlanError, match="no model at '/nowhere'"):
        build({"path": "/nowhere"})
