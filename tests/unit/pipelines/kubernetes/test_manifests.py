"""What `rlad deploy render` writes is what KubeRay takes, for every configuration of the project; and the checks that say so can fail."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from actors.pool.placement import POOL_LABEL
from pipelines.kubernetes.manifests import DeploymentOptions
from pipelines.kubernetes.render import Rendered, render
from pipelines.kubernetes.sizing import SizingOptions
from pipelines.kubernetes.workload import CONFIG_FILE
from pipelines.planning.pool_plans import pool_plans
from rlad.config import EvaluationSuite, RunConfig, TeacherServiceConfig, load_evaluation_suite, load_run_config
from rlad.config.comparison import load_comparison
from rlad.config.load import read_settings
from rlad.errors import PlanError

from .custom_resources import problems, read_schemas
from .operator_rules import violations

ROOT = Path(__file__).parents[4]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
IMAGE = "registry.example/rlad:1"
Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def schemas() -> dict[str, Any]:
    folder = ROOT.parent / "shared" / "crds"
    if not folder.is_dir():
        pytest.skip(f"KubeRay's custom resource definitions are not at {folder}")
    return read_schemas(folder)


def rendered(config: str | Path, *overrides: str, kind: Any = "all", **options: Any) -> Rendered:
    sizing = SizingOptions(
        gpu_memory_gib=141, max_workers=options.pop("max_workers", {}), memory_gib=options.pop("memory_gib", {})
    )
    path = ROOT / "configs" / config
    return render(
        path, overrides, kind=kind, options=DeploymentOptions(image=IMAGE, **options), sizing=sizing, source=path.name
    )


def manifests(files: Rendered) -> dict[str, Manifest]:
    """By kind; files that are no Kubernetes objects left out."""
    parsed = [
        yaml.safe_load(text) for name, text in files.files.items() if name not in ("serve.yaml", "kustomization.yaml")
    ]
    return {manifest["kind"]: manifest for manifest in parsed}


@pytest.fixture(scope="module", params=[path.name for path in CONFIGS])
def project_config(request: pytest.FixtureRequest) -> tuple[str, Rendered]:
    return request.param, rendered(request.param)


def test_every_configuration_of_the_project_renders_and_validates(
    project_config: tuple[str, Rendered], schemas: dict[str, Any]
) -> None:
    _, files = project_config
    found = manifests(files)
    assert {"ConfigMap", "RayJob", "RayCluster", "RayCronJob", "CronJob"} <= found.keys()
    for kind in found.keys() & schemas.keys():
        assert problems(schemas[kind], found[kind]) == []
        assert violations(found[kind]) == []


def test_only_what_a_configuration_has_no_teacher_for_is_left_out(project_config: tuple[str, Rendered]) -> None:
    name, files = project_config
    has_teacher = name not in ("eval_math.yaml", "offline_kk_cpu.yaml")
    assert ("RayService" in manifests(files)) == has_teacher
    assert (files.left_out == ()) == has_teacher


def test_the_job_runs_the_configuration_that_was_given(project_config: tuple[str, Rendered], tmp_path: Path) -> None:
    """The shipped file, read as the job's command reads it, is the same run, steered to its pools."""
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
                runs[place] = [planned.config for planned in load_comparison(path, changes).runs]
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
    """`there`, with the files of `sent`, each of which is the same file below the storage."""
    if isinstance(there, dict):
        return {key: _with_paths_of(value, sent[key]) for key, value in there.items()}
    if isinstance(there, str) and isinstance(sent, str) and sent == f"/mnt/rlad/{there}":
        return sent
    return there


def test_every_pool_has_its_group_and_the_groups_have_room_for_the_run(project_config: tuple[str, Rendered]) -> None:
    """As KubeRay tells Ray: whole CPUs and GPUs from the container's limits, and the label of each group."""
    name, files = project_config
    found = manifests(files)
    runs = (
        [each.config for each in load_comparison(ROOT / "configs" / name).runs]
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
def test_the_paper_s_runs_take_the_gpus_that_they_plan_for_and_no_more(config: str, gpus: int) -> None:
    groups = manifests(rendered(config))["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = {group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups}
    assert sum(group["replicas"] * int(limits[group["groupName"]].get("nvidia.com/gpu", 0)) for group in groups) == gpus
    tolerating = {group["groupName"] for group in groups if group["template"]["spec"].get("tolerations")}
    assert tolerating == {"rollout", "teacher", "learner"}


def test_no_manifest_holds_a_secret_or_runs_as_root(project_config: tuple[str, Rendered]) -> None:
    _, files = project_config
    for name, text in files.files.items():
        for variable in _found(yaml.safe_load(text), "env"):
            for each in variable:
                assert not (
                    any(word in each["name"].lower() for word in ("token", "password", "secret", "key"))
                    and "value" in each
                ), (name, each)
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
        for each in node:
            yield from _found(each, key)


def _pods(node: Any) -> Iterator[Manifest]:
    yield from (template["spec"] for template in _found(node, "template") if "containers" in template.get("spec", {}))


def test_clusters_authenticate_scale_by_version_2_and_survive_their_head() -> None:
    found = manifests(
        rendered(
            "qwen3_0.6b_kk_2k.yaml", max_workers={"rollout": 12}, token_secret="ours", redis_secret="redis-of-ours"
        )
    )
    cluster = found["RayCluster"]["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ours"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"] == {
        "name": "redis-of-ours",
        "key": "password",
    }
    sizes = {
        group["groupName"]: (group["minReplicas"], group["replicas"], group["maxReplicas"])
        for group in cluster["workerGroupSpecs"]
    }
    assert sizes == {"rollout": (4, 4, 12), "teacher": (2, 2, 2), "verifier": (2, 2, 2), "learner": (1, 1, 1)}
    for group in cluster["workerGroupSpecs"]:
        assert group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == "ray stop"
    # The driver of a job runs on the head: what the head knew is of no use without it.
    assert "gcsFaultToleranceOptions" not in found["RayJob"]["spec"]["rayClusterSpec"]


def test_a_cron_job_forbids_overlap_and_submits_to_the_standing_cluster() -> None:
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


def test_a_schedule_is_ticked_by_whoever_recurs_and_only_the_head_knows_its_database(schemas: dict[str, Any]) -> None:
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
    assert found["RayJob"]["spec"]["entrypoint"].startswith("rlad run ")  # one run is one run
    for kind in found.keys() & schemas.keys():
        assert problems(schemas[kind], found[kind]) == []
        assert violations(found[kind]) == []


def test_a_queue_admits_a_fixed_size_and_reaches_every_kind_that_kueue_watches() -> None:
    files = rendered("qwen3_0.6b_kk_2k.yaml", queue="nightly")
    found = manifests(files)
    for kind in ("RayJob", "RayCluster", "RayService"):
        assert found[kind]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nightly"
        assert violations(found[kind]) == []
    assert found["RayJob"]["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert [reason.partition(":")[0] for reason in files.left_out] == ["raycronjob"]
    with pytest.raises(PlanError, match="pool rollout cannot grow"):
        rendered("qwen3_0.6b_kk_2k.yaml", queue="nightly", max_workers={"rollout": 12})
    mixture = [f"teachers.t{number}={{path: t{number}, gpus_per_replica: 1}}" for number in range(4)]
    with pytest.raises(PlanError, match="Kueue takes at most 6 pools, the run has 7"):
        rendered("qwen3_0.6b_kk_2k.yaml", "teacher=null", *mixture, queue="nightly")


def test_suspended_means_that_nothing_starts(schemas: dict[str, Any]) -> None:
    found = manifests(rendered("smoke_cpu.yaml", is_suspended=True))
    for kind in ("RayJob", "RayService", "RayCronJob", "CronJob"):
        assert found[kind]["spec"]["suspend"] is True
    for kind in found.keys() & schemas.keys():
        assert problems(schemas[kind], found[kind]) == []
        assert violations(found[kind]) == []


def test_a_shared_teacher_has_no_pods_and_no_service_in_a_run_s_manifests() -> None:
    with_its_own, shared = (
        rendered("qwen3_0.6b_kk_2k.yaml"),
        rendered("qwen3_0.6b_kk_2k.yaml", "teacher.url=https://teacher.example/qwen3-8b"),
    )
    pools = [{group.pool for group in files.groups} for files in (with_its_own, shared)]
    assert pools[0] - pools[1] == {"teacher"}
    groups = manifests(shared)["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert "teacher" not in [group["groupName"] for group in groups]
    assert "RayService" not in manifests(shared)
    assert shared.left_out == (
        "rayservice: no teacher scores in this configuration that the run deploys, so there is none to serve: leave out rayservice",
    )
    config = yaml.safe_load(yaml.safe_load(shared.files["config.yaml"])["data"]["config.yaml"])
    assert config["teacher"] == {"url": "https://teacher.example/qwen3-8b"}


def test_the_service_s_teachers_are_what_serve_takes(tmp_path: Path) -> None:
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
    assert [(each.path, each.replicas, each.max_replicas, each.pool) for each in settings] == [
        ("/mnt/rlad/a", 2, 4, "teacher-small"),
        ("/mnt/rlad/b", 1, None, "teacher-large"),
    ]
    groups = manifests(files)["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["teacher-small", "teacher-large"]


def test_pools_named_after_teachers_and_tasks_get_names_and_labels_that_are_allowed(schemas: dict[str, Any]) -> None:
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
    assert groups["reward-open-answers"] == ("reward_open-answers", 2)
    shipped = yaml.safe_load(manifests(files)["ConfigMap"]["data"][CONFIG_FILE.name])
    assert shipped["verifiers"]["open/answers"]["path"] == "/mnt/rlad/reward"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "rayservice", "config": "eval_math.yaml"}, "no teacher scores"),
        ({"kind": "raycronjob", "queue": "nightly"}, "does not hand Kueue's label on"),
        ({"schedule": "every night"}, "five cron fields"),
        ({"tick": "every night"}, "no schedule is called 'every night'"),
        ({"timezone": "Europe/Atlantis"}, "no time zone 'Europe/Atlantis'"),
        ({"max_workers": {"rollouts": 9}}, "no pool rollouts: the pools are rollout, teacher, verifier, learner"),
        ({"max_workers": {"rollout": 2}}, "less than the run has"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        rendered(arguments.pop("config", "qwen3_0.6b_kk_2k.yaml"), **arguments)


# Each would be refused by a cluster. Were one of these to pass, the tests above would say nothing.
BREAK: list[tuple[Callable[[Manifest], Any], str]] = [
    (lambda job: job["spec"]["rayClusterSpec"].update(rayVersions="2.60.0"), "rayVersions"),
    (lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="4"), "is not of type 'integer'"),
    (
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas"),
        "'maxReplicas' is a required property",
    ),
    (lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
    (lambda job: _head(job)["containers"][0]["env"].append({"name": "HF_HOME", "value": "/"}), "is there twice"),
    (lambda job: _head(job)["containers"][0].update(resource={}), "resource"),
    (
        lambda job: _head(job)["containers"][0]["resources"]["limits"].update(cpu=0.5),
        "is not valid under any of the given schemas",
    ),
    (lambda job: job.pop("spec"), "'spec' is a required property"),
    (lambda job: job.update(apiVersion="ray.io/v1alpha1"), "'ray.io/v1' was expected"),
]


def _head(job: Manifest) -> Manifest:
    pod: Manifest = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return pod


@pytest.fixture(scope="module")
def job() -> Manifest:
    return manifests(rendered("smoke_cpu.yaml", kind="rayjob"))["RayJob"]


@pytest.mark.parametrize(("mutate", "problem"), BREAK, ids=[problem for _, problem in BREAK])
def test_the_schema_refuses(
    schemas: dict[str, Any], job: Manifest, mutate: Callable[[Manifest], Any], problem: str
) -> None:
    broken = copy.deepcopy(job)
    mutate(broken)
    assert any(problem in found for found in problems(schemas["RayJob"], broken)), problems(schemas["RayJob"], broken)


def _worker(job: Manifest) -> Manifest:
    group: Manifest = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return group


RULES: list[tuple[Callable[[Manifest], Any], str]] = [
    (lambda job: job["metadata"].update(name="a" * 48), "more than 47"),
    (lambda job: job["metadata"].update(name="0run"), "DNS-1035"),
    (
        lambda job: job["spec"].update(suspend=True, shutdownAfterJobFinishes=False),
        "suspend without shutdownAfterJobFinishes",
    ),
    (
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": "0"}),
        "resources in both",
    ),
    (lambda job: _worker(job)["rayStartParams"].update(labels="rlad.io/pool=rollout"), "labels inside rayStartParams"),
    (lambda job: _worker(job)["labels"].update({"rlad.io/pool": "a b"}), "malformed label"),
    (lambda job: _worker(job)["template"]["spec"].update(restartPolicy="Always"), "restartPolicy other than Never"),
    (lambda job: _worker(job).update(groupName="reward_math"), "not fit for a pod's name"),
    (lambda job: _worker(job).update(minReplicas=2), "not between minReplicas and maxReplicas"),
    (lambda job: _worker(job).update(suspend=True), "suspend with the autoscaler"),
    (
        lambda job: _head(job)["containers"][0]["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
        "autoscaler version in both",
    ),
    (
        lambda job: _head(job)["containers"][0]["env"].append({"name": "REDIS_PASSWORD", "value": "x"}),
        "REDIS_PASSWORD in the head",
    ),
    (lambda job: job["spec"]["rayClusterSpec"].pop("rayVersion"), "token authentication needs rayVersion"),
    (
        lambda job: _head(job).update(containers=[{}]) or _worker(job)["template"]["spec"].update(containers=[]),
        "no container",
    ),
]


@pytest.mark.parametrize(("mutate", "problem"), RULES, ids=[problem for _, problem in RULES])
def test_the_operator_refuses(job: Manifest, mutate: Callable[[Manifest], Any], problem: str) -> None:
    broken = copy.deepcopy(job)
    mutate(broken)
    assert any(problem in found for found in violations(broken)), violations(broken)
