"""Models, placement and memory of pools in `rlad plan`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cluster.resources import Resources
from pipelines.planning.plan import make_plan
from rlad.config import RunConfig, load_run_config
from rlad.objectives import KdrlConfig, TrrdConfig

from ..console_text import WIDTH, cells_of, rendered
from .plan_inputs import BYTES, CONFIGS, CPU_MACHINE, errors, prompt_files, write_shape


@pytest.mark.parametrize(
    ("name", "student", "teacher", "cluster", "gpu_memory_gib"),
    [
        ("qwen3_0.6b_kk_2k", "0.6B", "8B", Resources(cpus=256, gpus=8), 80),
        ("qwen3_1.7b_kk_8k", "1.7B", "8B", Resources(cpus=256, gpus=8), 80),
        ("qwen3_8b_math_30k", "8B", "32B", Resources(cpus=1024, gpus=64), 141),
    ],
)
def test_shipped_configurations_fit_their_clusters(
    qwen: dict[str, Path],
    tmp_path: Path,
    name: str,
    student: str,
    teacher: str,
    cluster: Resources,
    gpu_memory_gib: float,
) -> None:
    files = prompt_files(tmp_path) if "math" in name else ["prompts.count=64", "evaluation.prompts.count=35", BYTES]
    config = load_run_config(
        CONFIGS / f"{name}.yaml", [f"student.path={qwen[student]}", f"teacher.path={qwen[teacher]}", *files]
    )
    plan = make_plan(config, cluster, gpu_memory_gib=gpu_memory_gib)
    assert errors(plan) == []
    (warning,) = (finding.text for finding in plan.findings if finding.level == "warning")
    assert warning.startswith("objective.alpha 0.5 with teacher_log_ratio_clamp 1: the anchor alone clips")  # the paper


@pytest.mark.parametrize(
    ("objective", "max_refills", "warning"),
    [
        (
            TrrdConfig(),
            0,
            "where A > 0 if log(pi / pi_T) is above 0.49, and where A < 0 if it is below -0.45. The expected update "
            "then imitates the teacher, also against the reward. This is the paper's method; for a teacher that is "
            "not fully trusted, set objective.teacher_log_ratio_clamp to auto (-0.40 to 0.44).",
        ),
        (TrrdConfig(teacher_log_ratio_clamp="auto"), 8, None),
        (KdrlConfig(), 0, None),
        (KdrlConfig(imitate="response"), 8, "training.max_refills 8 drops groups with equal rewards"),
    ],
    ids=["paper", "auto clamp", "kdrl", "kdrl with refills"],
)
def test_settings_that_turn_or_skip_updates_are_pointed_out(
    qwen: dict[str, Path], objective: TrrdConfig | KdrlConfig, max_refills: int, warning: str | None
) -> None:
    settings = [f"student.path={qwen['0.6B']}", f"teacher.path={qwen['8B']}", "prompts.count=64", BYTES]
    config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*settings, f"training.max_refills={max_refills}"])
    plan = make_plan(config.model_copy(update={"objective": objective}), Resources(cpus=256, gpus=8), gpu_memory_gib=80)
    found = [finding.text for finding in plan.findings if finding.level == "warning"]
    assert len(found) == (warning is not None)
    assert warning is None or warning in found[0]


def test_too_small_cluster_is_refused_with_the_demand_of_each_pool(qwen: dict[str, Path]) -> None:
    config = load_run_config(
        CONFIGS / "qwen3_0.6b_kk_2k.yaml",
        [f"student.path={qwen['0.6B']}", f"teacher.path={qwen['8B']}", "prompts.count=64", BYTES],
    )
    (problem,) = errors(make_plan(config, Resources(cpus=64, gpus=4), gpu_memory_gib=80))
    assert "too few GPUs" in problem
    assert "need 8 (rollout 4, learner 2, teacher 2), the cluster has 4" in problem


def test_a_budget_that_is_never_reached_is_an_error(qwen: dict[str, Path]) -> None:
    models = [f"student.path={qwen['0.6B']}", f"teacher.path={qwen['8B']}", "prompts.count=64", BYTES]
    settings = ["cost.price_per_gpu_hour=0", "cost.budget.amount=100"]
    config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*models, *settings])
    (problem,) = errors(make_plan(config, Resources(cpus=256, gpus=8), gpu_memory_gib=80))
    assert problem.startswith("cost.budget.amount is never reached")


def test_offline_run_needs_room_for_generation_or_training_not_both_at_once(
    qwen: dict[str, Path],
) -> None:
    """Generation: 2 engines on 4 GPUs each; training: 4 rollout GPUs and 2 of the learner."""
    base = load_run_config(
        CONFIGS / "qwen3_0.6b_kk_2k.yaml",
        [f"student.path={qwen['0.6B']}", f"teacher.path={qwen['32B']}", "prompts.count=64", BYTES],
    )
    offline = {"rollout": {"workers": 2, "tensor_parallel": 4, "gpus_per_worker": 4}}
    config = RunConfig.model_validate({**base.model_dump(), "objective": {"name": "sft"}, "offline": offline})
    assert errors(make_plan(config, Resources(cpus=256, gpus=8), gpu_memory_gib=80)) == []
    (problem,) = errors(make_plan(config, Resources(cpus=256, gpus=7), gpu_memory_gib=80))
    assert "need 8 (teacher 8), the cluster has 7" in problem
    reused = RunConfig.model_validate({**config.model_dump(), "offline": {"traces": "elsewhere"}})
    assert errors(make_plan(reused, Resources(cpus=256, gpus=6), gpu_memory_gib=80)) == []
    (problem,) = errors(make_plan(reused, Resources(cpus=256, gpus=5), gpu_memory_gib=80))
    assert "need 6 (rollout 4, learner 2), the cluster has 5" in problem


def test_teacher_larger_than_its_gpus_is_refused(qwen: dict[str, Path]) -> None:
    config = load_run_config(
        CONFIGS / "qwen3_0.6b_kk_2k.yaml",
        [f"student.path={qwen['0.6B']}", f"teacher.path={qwen['32B']}", "prompts.count=64", BYTES],
    )
    (problem,) = errors(make_plan(config, Resources(cpus=256, gpus=8), gpu_memory_gib=40))
    assert "a teacher worker needs about 6" in problem


def test_different_vocabularies_are_refused(qwen: dict[str, Path], tmp_path: Path) -> None:
    other = write_shape(
        tmp_path / "other", hidden=1024, layers=2, feed_forward=64, heads=8, tied=True, other_vocabulary=True
    )
    config = load_run_config(
        CONFIGS / "qwen3_0.6b_kk_2k.yaml",
        [f"student.path={qwen['0.6B']}", f"teacher.path={other}", "prompts.count=64", BYTES],
    )
    (problem,) = errors(make_plan(config, Resources(cpus=256, gpus=8), gpu_memory_gib=80))
    assert "different vocabularies" in problem


def test_each_of_several_teachers_is_checked(qwen: dict[str, Path], tmp_path: Path) -> None:
    other = write_shape(
        tmp_path / "other", hidden=1024, layers=2, feed_forward=64, heads=8, tied=True, other_vocabulary=True
    )
    overrides = [
        f"student.path={qwen['0.6B']}",
        "teacher=null",
        f"teachers.small={{path: {qwen['8B']}, gpus_per_replica: 1, replicas: 2}}",
        f"teachers.large={{path: {qwen['32B']}, gpus_per_replica: 1}}",
        f"teachers.foreign={{path: {other}, gpus_per_replica: 1}}",
        "teacher_routes.knights_knaves={small: 1, large: 2}",
        "prompts.count=64",
        BYTES,
    ]
    config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", overrides)
    plan = make_plan(config, Resources(cpus=256, gpus=16), gpu_memory_gib=40)
    pools = {pool.pool: pool for pool in plan.pools}
    assert {"teacher-small", "teacher-large", "teacher-foreign"} <= pools.keys()
    assert (pools["teacher-small"].workers, pools["teacher-small"].resources.gpus) == (2, 2)
    problems = errors(plan)
    assert len(problems) == 3, problems
    assert "student and teacher-foreign have different vocabularies" in problems[0]
    assert "no prompt uses teacher foreign" in problems[1]
    assert "a teacher-large worker needs about 6" in problems[2]


def test_missing_model_is_named() -> None:
    config = load_run_config(CONFIGS / "smoke_cpu.yaml", ["student.path=/nowhere/student"])
    problems = errors(make_plan(config, CPU_MACHINE, gpu_memory_gib=80))
    assert any("/nowhere/student" in problem for problem in problems)


def test_pool_table_fits_80_columns(qwen: dict[str, Path]) -> None:
    overrides = [
        f"student.path={qwen['0.6B']}",
        "teacher=null",
        *(f"teachers.long_name_of_teacher_{at}={{path: {qwen['8B']}, gpus_per_replica: 8}}" for at in range(3)),
        "teachers.unknown={path: /nowhere}",
        "prompts.count=64",
        BYTES,
    ]
    config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", overrides)
    plan = make_plan(config, Resources(cpus=8192, gpus=1024), gpu_memory_gib=80)
    text = rendered(plan.table())
    assert max(map(len, text.splitlines())) <= WIDTH
    cells = cells_of(text)
    assert {"pool", "workers", "CPUs", "GPUs", "GiB per worker", "unknown", "teacher-long_name_of_teacher_0"} <= cells
    assert f"{plan.pools[0].worker_gib:.1f}" in cells


def test_rollout_workers_beyond_the_groups_in_flight_are_pointed_out(qwen: dict[str, Path]) -> None:
    settings = [f"student.path={qwen['0.6B']}", f"teacher.path={qwen['8B']}", "prompts.count=64", BYTES]
    idle = []
    for workers, staleness in ((32, 0), (33, 0), (64, 1), (65, 1)):
        sizes = [f"rollout.workers={workers}", f"training.max_staleness={staleness}"]
        config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*settings, *sizes])
        plan = make_plan(config, Resources(cpus=512, gpus=128), gpu_memory_gib=80)
        idle.append([finding.text for finding in plan.findings if "always idle" in finding.text])
    assert [len(found) for found in idle] == [0, 1, 0, 1]
    assert "1 of 65 rollout workers are always idle" in idle[3][0]
