"""File of a teacher service and its equivalent Serve config file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from actors.teacher.application import build, service_application
from pipelines.teacher_service import read_service, serve_file, write_serve_file
from rlad.errors import ConfigError

ROOT = Path(__file__).parents[3]
SERVICES = sorted((ROOT / "configs" / "teachers").glob("*.yaml"))


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_shipped_services_are_valid_and_serve_accepts_their_files(path: Path) -> None:
    service = read_service(path, [])
    schema = ServeDeploySchema.model_validate(serve_file(service))
    assert [application.name for application in schema.applications] == [service.name]
    assert schema.applications[0].route_prefix == (f"/{service.name}" if service.http else None)


def test_committed_serve_file_equals_the_generated_one() -> None:
    path = ROOT / "configs" / "teachers" / "qwen3_8b.yaml"
    service, committed = read_service(path, []), ROOT / "deploy" / "serve" / "teacher.yaml"
    config = yaml.safe_load(committed.read_text())
    assert config == serve_file(service), "run `make manifests`"
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000}
    (application,) = config["applications"]
    rebuilt = {**application["args"], "name": application["name"]}
    rebuilt["http"] |= config["http_options"]
    assert type(service).model_validate(rebuilt) == service


def options_of(application: Any) -> dict[str, Any]:
    deployment = application._bound_deployment
    return {
        "name": deployment.name,
        **deployment._deployment_config.model_dump(),
        "actor": deployment.ray_actor_options,
    }


def test_deploy_and_serve_file_build_equal_applications(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "service.yaml"
    source.write_text(
        f"name: t\npath: {make_model()}\nreplicas: 2\nmax_replicas: 5\nmax_groups_per_client: 9\n"
        "drain_s: 33\nhealth_timeout_s: 44\n"
        "http: {port: 8123, token_file: /etc/token, gateways: 3}\n"
    )
    service = read_service(source, ["cache_tokens=77"])
    write_serve_file(service, tmp_path / "serve.yaml", source="service.yaml")
    (application,) = yaml.safe_load((tmp_path / "serve.yaml").read_text())["applications"]
    direct, rebuilt = service_application(service), build(application["args"])
    assert options_of(direct) == options_of(rebuilt)
    replicas_of_both = [each._bound_deployment.init_args[0] for each in (direct, rebuilt)]
    assert options_of(replicas_of_both[0]) == options_of(replicas_of_both[1])
    gateway, replicas = options_of(direct), options_of(direct._bound_deployment.init_args[0])
    assert (gateway["name"], gateway["num_replicas"]) == ("TeacherGateway", 3)
    assert replicas["name"] == "SharedTeacher"
    assert (replicas["graceful_shutdown_timeout_s"], replicas["health_check_timeout_s"]) == (33, 44)
    scaling = replicas["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 5, 4)
    deployment = direct._bound_deployment.init_args[0]._bound_deployment
    assert deployment.init_kwargs == {"max_groups_per_client": 9}
    assert deployment.init_args[0].cache_tokens == 77


def test_run_configuration_and_misspelt_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the configuration of a run. Expected the file of a teacher service"):
        read_service(ROOT / "configs" / "smoke_cpu.yaml", [])
    with pytest.raises(ConfigError, match="max_replica: unknown key; did you mean `max_replicas`"):
        read_service(SERVICES[0], ["max_replica=3"])
    with pytest.raises(ConfigError, match="http.prot: unknown key; did you mean `port`"):
        read_service(SERVICES[0], ["http.prot=3"])
