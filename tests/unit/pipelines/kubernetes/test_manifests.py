"""Manifests of `rlad deploy render`: valid for KubeRay and equal to the run, for every configuration of the project."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from actors.pool.placement import POOL_LABEL
from pipelines.kubernetes.render import Rendered
from pipelines.kubernetes.workload import CONFIG_FILE
from pipelines.planning.pool_plans import pool_plans
from rlad.config import EvaluationSuite, RunConfig, TeacherServiceConfig, load_evaluation_suite, load_run_config
from rlad.config.comparison import load_comparison
from rlad.config.load import read_settings
from rlad.errors import PlanError

from .custom_resources import problems
from .operator_rules import violations
from .rendering import ROOT, Manifest, manifests, rendered

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module", params=[path.name for path in CONFIGS])
def project_config(request: pytest.FixtureRequest) -> tuple[str, Rendered]:
    return request.param, rendered(request.param)


def test_every_configuration_renders_to_valid_manifests(
    project_config: tuple[str, Rendered], schemas: dict[str, Any]
) -> None:
    _, files = project_config
    found = manifests(files)
    assert {"ConfigMap", "RayJob", "RayCluster", "RayCronJob", "CronJob"} <= found.keys()
    for kind in found.keys() & schemas.keys():
        assert problems(schemas[kind], found[kind]) == []
        assert violations(found[kind]) == []


def test_only_rayservice_is_left_out_if_no_teacher_scores(project_config: tuple[str, Rendered]) -> None:
    name, files = project_config
    has_teacher = name not in ("eval_math.yaml", "offline_kk_cpu.yaml", "smollm2_teacher_cpu.yaml")
    assert ("RayService" in manifests(files)) == has_teacher
    assert (files.left_out == ()) == has_teacher


def test_job_runs_the_given_configuration(project_config: tuple[str, Rendered], tmp_path: Path) -> None:
    """The mounted file, read with the overrides of the job's command, is the same run except for `cluster` settings."""
    name, files = project_config
    found = manifests(files)
    words = shlex.split(found["RayJob"]["spec"]["entrypoint"])
    shipped = tmp_path / CONFIG_FILE.name
    shipped.write_text(found["ConfigMap"]["data"][CONFIG_FILE.name])
    assert str(CONFIG_FILE) in words
    overrides = [word for word in words if "=" in word]
    runs: dict[str, list[RunConfig | EvaluationSuite]] = {}
    for place, path, changes in (("there", ROOT / "configs" / name, []), ("shipped", shipped, overrides)):
        match words[1]:
            case "compare":
                compared = load_comparison(path, changes, seeds=[0])  # the seeds differ in nothing else
                runs[place] = [planned.config for planned in compared.runs]
            case "eval":
                runs[place] = [load_evaluation_suite(path, changes)]
            case _:
                runs[place] = [load_run_config(path, changes)]
                assert words[1] == "run"
    assert len(runs["there"]) == len(runs["shipped"])
    for there, sent in zip(runs["there"], runs["shipped"], strict=True):
        assert sent.cluster.address == "auto"
        assert sent.cluster.pool_labels
        expected = _with_paths_of(there.model_dump(), sent.model_dump()) | {"cluster": sent.model_dump()["cluster"]}
        assert sent.model_dump() == expected


def _with_paths_of(there: Any, sent: Any) -> Any:
    """Replace paths in `there` by those in `sent` that are the same path below the shared storage."""
    if isinstance(there, dict):
        return {key: _with_paths_of(value, sent[key]) for key, value in there.items()}
    if isinstance(there, str) and isinstance(sent, str) and sent == f"/mnt/rlad/{there}":
        return sent
    return there


def test_every_pool_has_a_worker_group_with_room_for_its_workers(project_config: tuple[str, Rendered]) -> None:
    """KubeRay passes the container's limits (whole CPUs and GPUs) and the label of each group to Ray."""
    name, files = project_config
    found = manifests(files)
    runs = (
        [planned.config for planned in load_comparison(ROOT / "configs" / name, seeds=[0]).runs]
        if "compare" in name or "ablation" in name
        else None
    )
    settings = read_settings(ROOT / "configs" / name)
    if runs is None:
        runs = [
            load_evaluation_suite(ROOT / "configs" / name)
            if "sets" in settings
            else load_run_config(ROOT / "configs" / name)
        ]
    groups = {
        group["labels"][POOL_LABEL]: group for group in found["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    assert groups.keys() == {plan.pool for run in runs for plan in pool_plans(run)}
    assert [group["groupName"] for group in groups.values()] == list(groups)
    for run in runs:
        for plan in pool_plans(run):
            group = groups[plan.pool]
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            for resource, wanted in (("cpu", plan.resources.cpus), ("nvidia.com/gpu", plan.resources.gpus)):
                one = wanted / plan.workers
                in_a_pod = int(int(limits.get(resource, 0)) / one + 1e-9) if one else plan.workers
                assert in_a_pod * group["replicas"] >= plan.workers, (plan.pool, resource)


@pytest.mark.parametrize(
    ("config", "gpus"), [("qwen3_0.6b_kk_2k.yaml", 8), ("qwen3_1.7b_kk_8k.yaml", 8), ("qwen3_8b_math_30k.yaml", 64)]
)
def test_configurations_of_the_paper_request_exactly_the_planned_gpus(config: str, gpus: int) -> None:
    groups = manifests(rendered(config))["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = {group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups}
    assert sum(group["replicas"] * int(limits[group["groupName"]].get("nvidia.com/gpu", 0)) for group in groups) == gpus
    tolerating = {group["groupName"] for group in groups if group["template"]["spec"].get("tolerations")}
    assert tolerating == {"rollout", "teacher", "learner"}


def test_manifests_contain_no_secret_and_do_not_run_as_root(project_config: tuple[str, Rendered]) -> None:
    _, files = project_config
    for name, text in files.files.items():
        for variables in _found(yaml.safe_load(text), "env"):
            for variable in variables:
                assert not (
                    any(word in variable["name"].lower() for word in ("token", "password", "secret", "key"))
                    and "value" in variable
                ), (name, variable)
        for pod in _pods(yaml.safe_load(text)):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert all(
                container["securityContext"]["allowPrivilegeEscalation"] is False for container in pod["containers"]
            )


def _found(node: Any, key: str) -> Iterator[Any]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from _found(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from _found(item, key)


def _pods(node: Any) -> Iterator[Manifest]:
    yield from (template["spec"] for template in _found(node, "template") if "containers" in template.get("spec", {}))


def test_clusters_use_tokens_autoscaler_v2_and_redis() -> None:
    found = manifests(
        rendered(
            "qwen3_0.6b_kk_2k.yaml", max_workers={"rollout": 12}, token_secret="site-token", redis_secret="site-redis"
        )
    )
    cluster = found["RayCluster"]["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "site-token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"] == {
        "name": "site-redis",
        "key": "password",
    }
    sizes = {
        group["groupName"]: (group["minReplicas"], group["replicas"], group["maxReplicas"])
        for group in cluster["workerGroupSpecs"]
    }
    # Pods of 4 rollout workers, of 2 teacher replicas and of 2 learner ranks.
    assert sizes == {"rollout": (1, 1, 3), "teacher": (1, 1, 1), "verifier": (2, 2, 2), "learner": (1, 1, 1)}
    for group in cluster["workerGroupSpecs"]:
        assert group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == "ray stop"
    # The driver of a job runs on the head and dies with it, so the head's state is not kept.
    assert "gcsFaultToleranceOptions" not in found["RayJob"]["spec"]["rayClusterSpec"]


def test_cron_job_forbids_overlaps_and_submits_to_the_persistent_cluster() -> None:
    found = manifests(rendered("qwen3_0.6b_kk_2k.yaml", schedule="30 1 * * 1-5", timezone="Europe/Berlin"))
    spec = found["CronJob"]["spec"]
    assert found["CronJob"]["apiVersion"] == "batch/v1"
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == (
        "30 1 * * 1-5",
        "Europe/Berlin",
        "Forbid",
    )
    template = spec["jobTemplate"]["spec"]["template"]
    assert template["spec"]["restartPolicy"] == "Never"
    (container,) = template["spec"]["containers"]
    command = container["command"]
    cluster = found["RayCluster"]["metadata"]["name"]
    assert command[: command.index("--")] == [
        "ray",
        "job",
        "submit",
        "--address",
        f"http://{cluster}-head-svc:8265",
        "--submission-id",
        "$(RUN)",
    ]
    assert command[command.index("--") + 1 :][:3] == ["flock", "--nonblock", f"/mnt/rlad/{cluster}.lock"]
    assert "/mnt/rlad/runs/$(RUN)" in command
    environment = {variable["name"]: variable for variable in container["env"]}
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "auth_token"


def test_recurring_kinds_tick_the_schedule_and_only_the_head_has_its_database(schemas: dict[str, Any]) -> None:
    found = manifests(rendered("smoke_cpu.yaml", tick="nightly"))
    job = found["RayCronJob"]["spec"]["jobTemplate"]
    assert (job["entrypoint"], job["backoffLimit"]) == ("rlad schedule tick nightly", 2)
    (container,) = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-4:] == ["rlad", "schedule", "tick", "nightly"]
    for cluster in (job["rayClusterSpec"], found["RayCluster"]["spec"]):
        (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        url = {variable["name"]: variable for variable in head["env"]}["RLAD_SCHEDULES"]
        assert url["valueFrom"]["secretKeyRef"] == {"name": "rlad-schedules", "key": "url"}
        workers = [group["template"]["spec"]["containers"][0] for group in cluster["workerGroupSpecs"]]
        assert all(variable["name"] != "RLAD_SCHEDULES" for worker in workers for variable in worker["env"])
    assert found["RayJob"]["spec"]["entrypoint"].startswith("rlad run ")  # a single run ticks no schedule
    for kind in found.keys() & schemas.keys():
        assert problems(schemas[kind], found[kind]) == []
        assert violations(found[kind]) == []


def test_queue_requires_fixed_sizes_and_labels_every_kind_of_kueue() -> None:
    files = rendered("qwen3_0.6b_kk_2k.yaml", queue="nightly")
    found = manifests(files)
    for kind in ("RayJob", "RayCluster", "RayService"):
        assert found[kind]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nightly"
        assert violations(found[kind]) == []
    assert found["RayJob"]["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert [reason.partition(":")[0] for reason in files.left_out] == ["raycronjob"]
    with pytest.raises(PlanError, match="requires pools of fixed size.*pool rollout"):
        rendered("qwen3_0.6b_kk_2k.yaml", queue="nightly", max_workers={"rollout": 12})
    mixture = [f"teachers.t{number}={{path: t{number}, gpus_per_replica: 1}}" for number in range(4)]
    with pytest.raises(PlanError, match="at most 6 pools, since Kueue admits no more; the run has 7"):
        rendered("qwen3_0.6b_kk_2k.yaml", "teacher=null", *mixture, queue="nightly")


def test_suspended_objects_start_nothing(schemas: dict[str, Any]) -> None:
    found = manifests(rendered("smoke_cpu.yaml", is_suspended=True))
    for kind in ("RayJob", "RayService", "RayCronJob", "CronJob"):
        assert found[kind]["spec"]["suspend"] is True
    for kind in found.keys() & schemas.keys():
        assert problems(schemas[kind], found[kind]) == []
        assert violations(found[kind]) == []


def test_shared_teacher_has_neither_pods_nor_service_in_the_manifests_of_a_run() -> None:
    own, shared = (
        rendered("qwen3_0.6b_kk_2k.yaml"),
        rendered("qwen3_0.6b_kk_2k.yaml", "teacher.url=https://teacher.example/qwen3-8b"),
    )
    pools = [{group.pool for group in files.groups} for files in (own, shared)]
    assert pools[0] - pools[1] == {"teacher"}
    groups = manifests(shared)["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert "teacher" not in [group["groupName"] for group in groups]
    assert "RayService" not in manifests(shared)
    assert shared.left_out == (
        "rayservice: this configuration has no teacher that scores and that the run deploys, so there is no service to "
        "render",
    )
    config = yaml.safe_load(yaml.safe_load(shared.files["config.yaml"])["data"]["config.yaml"])
    assert config["teacher"] == {"url": "https://teacher.example/qwen3-8b"}


def test_serve_config_is_valid_for_ray_serve(tmp_path: Path) -> None:
    overrides = [
        "teacher=null",
        "teachers.small={path: a, gpus_per_replica: 1, replicas: 2}",
        "teachers.large={path: b, gpus_per_replica: 2}",
    ]
    files = rendered(
        "qwen3_0.6b_kk_2k.yaml", *overrides, "teacher_routes.knights_knaves=small", max_workers={"teacher-small": 4}
    )
    config = yaml.safe_load(files.files["serve.yaml"])
    assert yaml.safe_load(manifests(files)["RayService"]["spec"]["serveConfigV2"]) == config
    schema = ServeDeploySchema.model_validate(config)
    assert [application.name for application in schema.applications] == ["teacher-small", "teacher-large"]
    settings = [TeacherServiceConfig.model_validate(application.args) for application in schema.applications]
    assert [(teacher.path, teacher.replicas, teacher.max_replicas, teacher.pool) for teacher in settings] == [
        ("/mnt/rlad/a", 2, 4, "teacher-small"),
        ("/mnt/rlad/b", 1, None, "teacher-large"),
    ]
    groups = manifests(files)["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["teacher-small", "teacher-large"]


def test_pools_of_teachers_and_reward_models_get_valid_names_and_labels(schemas: dict[str, Any]) -> None:
    overrides = [
        "teacher=null",
        "teachers.Math_1={path: a, gpus_per_replica: 1}",
        "verifiers.open/answers={name: reward_model, path: reward, gpus_per_worker: 1, workers: 2}",
    ]
    files = rendered("qwen3_0.6b_kk_2k.yaml", *overrides)
    job = manifests(files)["RayJob"]
    assert problems(schemas["RayJob"], job) == []
    assert violations(job) == []
    groups = {
        group["groupName"]: (group["labels"][POOL_LABEL], group["replicas"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    assert groups["teacher-math-1"] == ("teacher-Math_1", 1)
    assert groups["reward-open-answers"] == ("reward_open-answers", 1)  # one pod of two workers
    shipped = yaml.safe_load(manifests(files)["ConfigMap"]["data"][CONFIG_FILE.name])
    assert shipped["verifiers"]["open/answers"]["path"] == "/mnt/rlad/reward"


def test_site_settings_reach_the_pods_with_gpus_and_the_environment_all_workers(schemas: dict[str, Any]) -> None:
    site = {
        "pod_resources": {"rdma/hca": "8"},
        "environment": {"NCCL_IB_HCA": "mlx5"},
        "capabilities": ("IPC_LOCK",),
        "compile_cache": "/cache",
    }
    job = manifests(rendered("qwen3_0.6b_kk_2k.yaml", **site))["RayJob"]
    assert problems(schemas["RayJob"], job) == []
    assert violations(job) == []
    cluster = job["spec"]["rayClusterSpec"]
    for group in cluster["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        on_gpu, resources = group["groupName"] != "verifier", container["resources"]
        assert [amounts.get("rdma/hca") for amounts in resources.values()] == ["8" if on_gpu else None] * 2
        added = {"drop": ["ALL"]} | ({"add": ["IPC_LOCK"]} if on_gpu else {})
        assert container["securityContext"]["capabilities"] == added
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert environment["NCCL_IB_HCA"] == "mlx5"
        assert environment.get("VLLM_CACHE_ROOT") == ("/cache/vllm" if on_gpu else None)
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert "rdma/hca" not in head["resources"]["limits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pod_resources": {"rdma": "8"}}, "name of an extended resource"),
        ({"environment": {"HF_TOKEN": "x"}}, "--env HF_TOKEN looks like a secret"),
        ({"environment": {"A-B": "x"}}, "requires a variable name"),
        ({"capabilities": ("SYS_ADMIN",)}, "--capability supports IPC_LOCK, SYS_RESOURCE; got 'SYS_ADMIN'"),
        ({"compile_cache": "cache"}, "--compile-cache requires an absolute path"),
        ({"kind": "rayservice", "config": "eval_math.yaml"}, "no teacher that scores"),
        ({"kind": "raycronjob", "queue": "nightly"}, "does not pass Kueue's label"),
        ({"schedule": "every night"}, "five cron fields"),
        ({"tick": "every night"}, "requires the name of a schedule.*got 'every night'"),
        ({"timezone": "Europe/Atlantis"}, "unknown time zone 'Europe/Atlantis'"),
        ({"max_workers": {"rollouts": 9}}, "unknown pool rollouts: the pools are rollout, teacher, verifier, learner"),
        ({"max_workers": {"rollout": 2}}, "lower than the run's number of workers"),
    ],
)
def test_invalid_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        rendered(arguments.pop("config", "qwen3_0.6b_kk_2k.yaml"), **arguments)
