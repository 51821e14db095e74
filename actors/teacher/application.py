"""Serve application of a teacher service.

A Serve config file refers to it by `import_path: actors.teacher.application:build` and gives its settings as `args`.
"""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from actors.pool.placement import selector_of
from actors.teacher.deployment import shared_teacher_application
from actors.teacher.http_gateway import gateway_application
from rlad.config import ClusterConfig, TeacherServiceConfig
from rlad.config.load import validated
from rlad.models.locations import pin_model

BUILD_PATH = "actors.teacher.application:build"


def build(args: dict[str, Any]) -> Application:
    """Build the application from the `args` of a Serve config file.

    Args:
        args: Settings of `TeacherServiceConfig`.

    Raises:
        ConfigError: A setting is unknown or has an invalid value.
        RladError: The model does not exist or cannot be reached.
    """
    return service_application(validated(TeacherServiceConfig, args, where="args of the teacher application"))


def service_application(config: TeacherServiceConfig) -> Application:
    """Return the Serve application of a teacher service without deploying it.

    The application consists of the replicas and, if HTTP is configured, an HTTP gateway in front of them. The model is
    resolved here, once for all replicas, and each node fetches its files.

    Raises:
        RladError: The model does not exist or cannot be reached.
    """
    local = config.model_copy(update={"path": pin_model(config.path).location})
    selector = {} if config.pool is None else selector_of(ClusterConfig(pool_labels=True), config.pool)
    replicas = shared_teacher_application(local, label_selector=selector)
    return replicas if config.http is None else gateway_application(replicas, config.http, timeout_s=config.timeout_s)
