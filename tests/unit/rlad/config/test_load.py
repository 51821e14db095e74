"""Loading and validation of run and evaluation configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlad.config import load_evaluation_suite, load_run_config
from rlad.config.load import merged, read_settings
from rlad.config.prompts import KnightsKnavesPrompts, PromptFile
from rlad.config.teachers import TeacherConfig
from rlad.errors import ConfigError

CONFIGS = Path(__file__).parents[4] / "configs"
SMOKE = CONFIGS / "smoke_cpu.yaml"


EVALUATIONS = sorted(CONFIGS.glob("eval_*.yaml"))
RUNS = sorted(
    set(CONFIGS.glob("*.yaml")) - {*EVALUATIONS, *CONFIGS.glob("compare_*.yaml"), *CONFIGS.glob("ablation_*.yaml")}
)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_run_configuration_is_valid(path: Path) -> None:
    assert load_run_config(path).name.replace("-", "_") == path.stem


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_shipped_evaluation_suite_is_valid(path: Path) -> None:
    assert load_evaluation_suite(path).name.replace("-", "_") == path.stem


def test_math_suite_uses_the_sampling_settings_of_the_paper() -> None:
    suite = load_evaluation_suite(CONFIGS / "eval_math.yaml", ["student.path=export"])
    assert list(suite.sets) == ["math500", "aime24", "aime25", "amc23", "amc24"]
    for settings in suite.sets.values():
        assert (settings.temperature, settings.top_p, settings.samples) == (0.6, 0.95, 32)
    assert list(suite.only(["aime25", "math500"]).sets) == ["aime25", "math500"]
    with pytest.raises(ConfigError, match="no evaluation set aime26; the suite has math500, aime24"):
        suite.only(["aime26"])


def test_run_file_loads_as_suite_with_one_set() -> None:
    run, suite = load_run_config(SMOKE), load_evaluation_suite(SMOKE)
    assert suite.sets == {"evaluation": run.evaluation}
    assert (suite.student, suite.verifiers, suite.rollout) == (run.student, run.verifiers, run.rollout)


def test_invalid_suite_setting_is_reported_with_a_fix() -> None:
    with pytest.raises(ConfigError, match=r"sets\.aime24\.sample: unknown key; did you mean `samples`"):
        load_evaluation_suite(CONFIGS / "eval_math.yaml", ["sets.aime24.sample=4"])
    with pytest.raises(ConfigError, match="without duplicates"):
        load_evaluation_suite(CONFIGS / "eval_math.yaml", ["sets.aime24.group_by=[task, task]"])


@pytest.mark.parametrize(
    "overrides",
    [["prompts={source: file, path: /p.jsonl}"], ["prompts.path=/p.jsonl", "prompts.source=file"]],
)
def test_override_of_another_kind_replaces_the_section(overrides: list[str]) -> None:
    prompts = load_run_config(SMOKE, overrides).prompts
    assert isinstance(prompts, PromptFile)
    assert prompts.path == "/p.jsonl"
    assert merged(load_run_config(SMOKE).model_dump(mode="json"), overrides)["prompts"] == {
        "source": "file",
        "path": "/p.jsonl",
    }


def test_override_of_the_same_kind_keeps_the_other_settings_of_the_section() -> None:
    before, after = (
        load_run_config(SMOKE, overrides).prompts for overrides in ([], ["prompts={source: knights_knaves, count: 8}"])
    )
    assert isinstance(after, KnightsKnavesPrompts)
    assert after == before.model_copy(update={"count": 8})


def test_shared_teacher_and_own_teacher_replace_each_other(tmp_path: Path) -> None:
    shared = "teacher={service: kk, timeout_s: 9}"
    assert load_run_config(SMOKE, [shared]).model_dump()["teacher"]["service"] == "kk"
    path = tmp_path / "shared.yaml"
    path.write_text(yaml.safe_dump(read_settings(SMOKE, [shared])))
    own = load_run_config(path, ["teacher.path=/model"]).teacher
    assert isinstance(own, TeacherConfig)
    assert own.path == "/model"


def test_overrides_take_precedence_and_keep_their_types() -> None:
    config = load_run_config(
        SMOKE,
        [
            "learner.optimizer.lr=3e-5",
            "learner.zero_stage=3",
            "training.steps=2",
            "objective={name: grpo}",
            "teacher=null",
        ],
    )
    assert config.learner.optimizer.lr == 3e-5
    assert config.learner.zero_stage == 3
    assert config.training.steps == 2
    assert config.teacher is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.zero_stag=3", "did you mean `zero_stage`"),
        ("objective.alhpa=0.3", "did you mean `alpha`"),
        ("objective.alpha=1.5", "alpha"),
        ("rollout.top_p=0.9", "rollout.top_p must be 1 and rollout.top_k must be 0; got 0.9 and 0"),
        ("rollout.group_size=1", "group_size"),
        ("training.updates_per_step=3", "must divide"),
        ("objective={name: ppo}", "ppo"),
        ("objective={name: grpo}", "uses no teacher; got a `teacher` section"),
        ("teacher=null", "requires a teacher; got none"),
        ("training.max_staleness=-1", "greater than or equal to 0"),
        ("rollout.autoscale=true", "rollout: rollout.autoscale requires rollout.max_workers; got null$"),
        ("rollout={max_workers: 2, workers: 3}", "got workers 3, min_workers 1, max_workers 2$"),
        ("name=../../etc", "name"),
        ("learner", "key=value"),
        ("learner.lora.rank=0", "rank"),
        ("rollout.max_group_attempts=2", "this setting is now `failures.max_group_attempts`; move it there"),
        ("learner.step_timeout_s=60", "this setting is now `failures.step_timeout_s`; move it there"),
        ("failures.heartbeat_s=0", "greater than 0"),
        ("failures.missed_heartbeats=0", "greater than or equal to 1"),
        ("learner.lora.dropout=0.1", "unknown key"),
        ("learner.lora.target_modules=q_proj", "all-linear"),
        ("learner.lora.target_modules=[]", "expected a list of linear layer names"),
        ("learner.lora.target_modules=[all-linear]", "expected a list of linear layer names"),
        ("learner.lora.target_modules=[q_proj, model.embed_tokens]", "model.embed_tokens cannot be adapted"),
        ("prompts.people={9: 1}", "people"),
    ],
)
def test_invalid_setting_is_reported_with_a_fix(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(SMOKE, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("offline=null", "requires an `offline` section; got null"),
        ("objective={name: grpo}", "Remove the `offline` section, or choose 'sft'"),
        ("teacher=null", "require a teacher that generates traces; got none"),
        ("rollout.temperature=0.7", "offline runs require rollout.temperature 1; got 0.7"),
        ("objective.reference_kl=0.1", "do not support a reference policy; got objective.reference_kl 0.1"),
        ("offline.trace=somewhere", "did you mean `traces`"),
        ("offline.rollout.top_p=0.9", "unknown key"),
        ("offline.top_p=0", "top_p"),
    ],
)
def test_invalid_offline_setting_is_reported_with_a_fix(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(CONFIGS / "offline_kk_cpu.yaml", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.pi_old=recompute"], "requires one update per step .*; got 2 and 1. Use 'rollout'"),
        (
            ["learner.pi_old=recompute", "training.updates_per_step=1", "training.passes=3"],
            "requires one update per step .*; got 1 and 3. Use 'rollout'",
        ),
        (
            ["objective={name: kdrl, imitate: group}", "training.max_refills=4"],
            "training.max_refills must be 0 with objective.imitate 'group': .*; got 4. Set training.max_refills to 0",
        ),
        (
            ["learner.pi_old=recompute", "training.updates_per_step=1", "training.max_staleness=1"],
            "requires training.max_staleness 0, .*; got 1. Use 'rollout'",
        ),
    ],
)
def test_pi_old_cannot_be_recomputed_with_newer_weights_than_sampled(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(SMOKE, overrides)


ON_GPUS = ["training.updates_per_step=1", "learner.gpus_per_rank=1", "rollout.gpus_per_worker=1"]
SHARED_GPU = [
    "training.updates_per_step=1",
    "weights.transport=ipc",
    "learner.gpus_per_rank=0.4",
    "rollout.gpus_per_worker=0.5",
    "rollout.max_workers=1",
    "rollout.gpu_memory_fraction=0.5",
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["weights.transport=gloo"],
            "requires one update per step .*; got 2 and 1.*Set training.updates_per_step and training.passes to 1",
        ),
        (
            ["weights.transport=gloo", "training.updates_per_step=1", "training.passes=2"],
            "requires one update per step .*; got 1 and 2",
        ),
        (
            [*ON_GPUS, "weights.transport=gloo"],
            "'gloo' requires a run without GPUs; got learner.gpus_per_rank 1 .*Use nccl",
        ),
        (
            ["training.updates_per_step=1", "weights.transport=nccl"],
            "requires one GPU per learner rank.*got learner.gpus_per_rank 0",
        ),
        ([*ON_GPUS, "weights.transport=nccl", "learner.gpus_per_rank=0.5"], "got learner.gpus_per_rank 0.5"),
        (
            [*ON_GPUS, "weights.transport=nccl", "rollout.tensor_parallel=2"],
            r"one per engine process \(2 .*rollout.gpus_per_worker 1\. Increase them",
        ),
        (
            [*ON_GPUS, "weights.transport=ipc"],
            "one learner rank and one rollout worker, which share a GPU.*rollout.max_workers null",
        ),
        ([*SHARED_GPU, "learner.ranks=2"], "got learner.ranks 2"),
        (
            [*SHARED_GPU, "learner.gpus_per_rank=0.6"],
            "to share one GPU.*got learner.gpus_per_rank 0.6 and rollout.gpus_per_worker 0.5",
        ),
        (
            [*SHARED_GPU, "rollout.gpu_memory_fraction=0.9"],
            "rollout.gpu_memory_fraction of at most rollout.gpus_per_worker.*got 0.9 and 0.5",
        ),
        ([*SHARED_GPU, "cluster.pool_labels=true"], "requires cluster.pool_labels false"),
        (["weights.transport=rdma"], "object_store"),
    ],
)
def test_impossible_weight_transport_is_reported_with_a_fix(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(SMOKE, overrides)


def test_possible_weight_transport_is_accepted() -> None:
    assert load_run_config(SMOKE).weights.transport == "object_store"
    assert load_run_config(SMOKE, ["training.updates_per_step=1", "weights.transport=gloo"]).weights.transport == "gloo"
    assert load_run_config(SMOKE, [*ON_GPUS, "weights.transport=nccl", "learner.ranks=4"]).weights.transport == "nccl"
    assert load_run_config(SMOKE, SHARED_GPU).weights.transport == "ipc"


def test_offline_run_with_existing_traces_needs_no_teacher() -> None:
    config = load_run_config(CONFIGS / "offline_kk_cpu.yaml", ["offline.traces=runs/other/traces", "teacher=null"])
    assert not config.needs_teacher
    assert load_run_config(CONFIGS / "offline_kk_cpu.yaml").needs_teacher


def test_teacher_engines_inherit_unset_rollout_settings() -> None:
    config = load_run_config(
        CONFIGS / "offline_kk_cpu.yaml",
        ["offline.rollout={max_response_tokens: 1024, workers: 3}", "rollout.threads=2"],
    )
    assert config.offline is not None
    changed = {"max_response_tokens": 1024, "workers": 3}
    assert config.offline.generator_of(config.rollout).model_dump() == {**config.rollout.model_dump(), **changed}


def test_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at .*nowhere\.yaml"):
        load_run_config(tmp_path / "nowhere.yaml")


def test_invalid_yaml_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [unclosed")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_run_config(path)


def test_vllm_teacher_requires_temperature_one() -> None:
    with pytest.raises(ConfigError, match="only at temperature 1; got rollout.temperature 0.8"):
        load_run_config(SMOKE, ["teacher.engine=vllm", "rollout.temperature=0.8"])


def test_float32_students_on_gpu_are_refused_above_the_length_that_their_attention_supports() -> None:
    on_gpu = ["student.dtype=float32", "rollout.max_prompt_tokens=96", "rollout.max_response_tokens=4000"]
    assert load_run_config(CONFIGS / "smoke_gpu.yaml", on_gpu).learner.gpus_per_rank == 0.4
    with pytest.raises(ConfigError, match="at most 4096 tokens together.*got .* 4097. Set student.dtype to bfloat16"):
        load_run_config(CONFIGS / "smoke_gpu.yaml", [*on_gpu, "rollout.max_prompt_tokens=97"])
    load_run_config(CONFIGS / "smoke_gpu.yaml", [*on_gpu, "rollout.max_prompt_tokens=97", "student.dtype=bfloat16"])
    load_run_config(SMOKE, [*on_gpu, "rollout.max_prompt_tokens=97"])


def test_ranks_that_do_not_form_whole_sequence_groups_are_refused() -> None:
    config = load_run_config(SMOKE, ["learner.ranks=6", "learner.sequence_parallel=3"])
    assert config.learner.sequence_groups == 2
    assert load_run_config(SMOKE, ["learner.ranks=6"]).learner.sequence_groups == 6
    with pytest.raises(ConfigError, match=r"must divide learner\.ranks.*got sequence_parallel 4 and ranks 6\. Set"):
        load_run_config(SMOKE, ["learner.ranks=6", "learner.sequence_parallel=4"])
