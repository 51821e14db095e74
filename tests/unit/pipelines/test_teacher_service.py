"""A teacher service's file, and the Serve config file that says the same."""

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
def test_every_shipped_service_is_valid_and_serve_takes_its_file(path: Path) -> None:
    service = read_service(path, [])
    schema = ServeDeploySchema.model_validate(serve_file(service))
    assert [application.name for application in schema.applications] == [service.name]
    assert schema.applications[0].route_prefix == (f"/{service.name}" if service.http else None)


def test_the_serve_file_of_deploy_is_what_rlad_teacher_deploy_deploys() -> None:
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


def test_deploying_and_the_serve_file_give_equal_applications(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "service.yaml"
    source.write_text(
        f"name: t\npath: {make_model()}\nreplicas: 2\nmax_replicas: 5\nmax_groups_per_client: 9\ndrain_s: 33\nhealth_timeout_s: 44\n"
        "http: {port: 8123, token_file: /etc/token, gateways: 3}\n"
    )
    service = read_service(source, ["cache_tokens=77"])
    write_serve_file(service, tmp_path / "serve.yaml", source="service.yaml")
    (application,) = yaml.safe_load((tmp_path / "serve.yaml").read_text())["applications"]
    ours, theirs = service_application(service), build(application["args"])
    for one, other in ((ours, theirs), (ours._bound_deployment.init_args[0], theirs._bound_deployment.init_args[0])):
        assert options_of(one) == options_of(other)
    gateway, replicas = options_of(ours), options_of(ours._bound_deployment.init_args[0])
    assert (gateway["name"], gateway["num_replicas"]) == ("TeacherGateway", 3)
    assert replicas["name"] == "SharedTeacher"
    assert (replicas["graceful_shutdown_timeout_s"], replicas["health_check_timeout_s"]) == (33, 44)
    scaling = replicas["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 5, 4)
    deployment = ours._bound_deployment.init_args[0]._bound_deployment
    assert deployment.init_kwargs == {"max_groups_per_client": 9}
    assert deployment.init_args[0].cache_tokens == 77


def test_a_run_s_file_is_no_service_and_a_misspelt_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a run's configuration. A teacher service has a file of its own"):
        read_service(ROOT / "configs" / "smoke_cpu.yaml", [])
    with pytest.raises(ConfigError, match="max_replica: unknown key; did you mean `max_replicas`"):
        read_service(SERVICES[0], ["max_replica=3"])
    with pytest.raises(ConfigError, match="http.prot: unknown key; did you mean `port`"):
        read_service(SERVICES[0], ["http.prot=3"])
