"""A teacher service as a Serve config file names it: `import_path: actors.teacher.application:build`, with its settings as `args`."""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from actors.pool.placement import selector_of
from actors.teacher.deployment import shared_teacher_application
from actors.teacher.http_gateway import gateway_application
from rlad.config import ClusterConfig, TeacherServiceConfig
from rlad.config.load import validated
from rlad.models.references import resolve_model

BUILD_PATH = "actors.teacher.application:build"


def build(args: dict[str, Any]) -> Application:
    """What Serve deploys.

    Raises:
        ConfigError: a setting that a teacher does not have, or a wrong value.
        PlanError: no such model on the node that builds the application.
    """
    return service_application(validated(TeacherServiceConfig, args, where="args of the teacher's application"))


def service_application(config: TeacherServiceConfig) -> Application:
    """The Serve application of a teacher service, undeployed: its replicas, and a gateway before them where it has HTTP.

    Raises:
        PlanError: no such model on this machine.
    """
    local = config.model_copy(update={"path": str(resolve_model(config.path))})
    selector = {} if config.pool is None else selector_of(ClusterConfig(pool_labels=True), config.pool)
    replicas = shared_teacher_application(local, label_selector=selector)
    return replicas if config.http is None else gateway_application(replicas, config.http, timeout_s=config.timeout_s)
