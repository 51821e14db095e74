"""A teacher as a Serve config file names it: `import_path: actors.teacher_app:build`, with its settings as `args`."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from ray.serve import Application

from actors.placement import selector_of
from actors.teacher import teacher_application
from rlad.config import ClusterConfig, TeacherConfig
from rlad.config.load import validated
from rlad.starters import resolve_model


class TeacherApplicationConfig(TeacherConfig):
    """`args` of a Serve application: a teacher's settings as in a run's YAML, and where its replicas may be."""

    pool: str | None = Field(None, description="Replicas run on the nodes labelled `rlad.io/pool` with this; without it on any.")
    max_replicas: int | None = Field(None, ge=1, description="Serve scales between `replicas` and so many by the groups under way; without it: not.")


def build(args: dict[str, Any]) -> Application:
    """What Serve deploys.

    Raises:
        ConfigError: a setting that a teacher does not have, or a wrong value.
        PlanError: no such model on the node that builds the application.
    """
    settings = validated(TeacherApplicationConfig, args, where="args of the teacher's application")
    teacher = TeacherConfig.model_validate(settings.model_dump(exclude={"pool", "max_replicas"}) | {"path": str(resolve_model(settings.path))})
    selector = {} if settings.pool is None else selector_of(ClusterConfig(pool_labels=True), settings.pool)
    return teacher_application(teacher, label_selector=selector, max_replicas=settings.max_replicas)
