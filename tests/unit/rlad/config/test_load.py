"""A configuration is right, or it is refused in one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlad.config import load_evaluation_suite, load_run_config
from rlad.errors import ConfigError

CONFIGS = Path(__file__).parents[4] / "configs"
SMOKE = CONFIGS / "smoke_cpu.yaml"


EVALUATIONS = sorted(CONFIGS.glob("eval_*.yaml"))
RUNS = sorted(
    set(CONFIGS.glob("*.yaml")) - {*EVALUATIONS, *CONFIGS.glob("compare_*.yaml"), *CONFIGS.glob("ablation_*.yaml")}
)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert load_run_config(path).name.replace("-", "_") == path.stem


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_every_shipped_evaluation_is_valid(path: Path) -> None:
    assert load_evaluation_suite(path).name.replace("-", "_") == path.stem


def test_the_paper_s_mathematics_sets_are_sampled_as_in_the_paper() -> None:
    suite = load_evaluation_suite(CONFIGS / "eval_math.yaml", ["student.path=export"])
    assert list(suite.sets) == ["math500", "aime24", "aime25", "amc23", "amc24"]
    for settings in suite.sets.values():
        assert (settings.temperature, settings.top_p, settings.samples) == (0.6, 0.95, 32)
    assert list(suite.only(["aime25", "math500"]).sets) == ["aime25", "math500"]
    with pytest.raises(ConfigError, match="no evaluation set aime26: there are math500, aime24"):
        suite.only(["aime26"])


def test_a_run_is_an_evaluation_of_one_set() -> None:
    run, suite = load_run_config(SMOKE), load_evaluation_suite(SMOKE)
    assert suite.sets == {"evaluation": run.evaluation}
    assert (suite.student, suite.verifiers, suite.rollout) == (run.student, run.verifiers, run.rollout)


def test_a_wrong_setting_of_an_evaluation_is_refused_with_its_remedy() -> None:
    with pytest.raises(ConfigError, match=r"sets\.aime24\.sample: unknown key; did you mean `samples`"):
        load_evaluation_suite(CONFIGS / "eval_math.yaml", ["sets.aime24.sample=4"])
    with pytest.raises(ConfigError, match="none twice"):
        load_evaluation_suite(CONFIGS / "eval_math.yaml", ["sets.aime24.group_by=[task, task]"])


def test_overrides_win_and_keep_their_types() -> None:
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
        ("rollout.top_p=0.9", "rescales pi_old"),
        ("rollout.group_size=1", "group_size"),
        ("training.updates_per_step=3", "must divide"),
        ("objective={name: ppo}", "ppo"),
        ("objective={name: grpo}", "uses no teacher"),
        ("teacher=null", "needs a teacher"),
        ("training.max_staleness=-1", "greater than or equal to 0"),
        ("rollout.autoscale=true", "autoscale needs max_workers"),
        ("rollout={max_workers: 2, workers: 3}", "workers 3 must be between min_workers 1 and max_workers 2"),
        ("name=../../etc", "name"),
        ("learner", "key=value"),
        ("learner.lora.rank=0", "rank"),
        ("learner.lora.dropout=0.1", "unknown key"),
        ("learner.lora.target_modules=q_proj", "all-linear"),
        ("learner.lora.target_modules=[]", "give the names of linear layers"),
        ("learner.lora.target_modules=[all-linear]", "give the names of linear layers"),
        ("learner.lora.target_modules=[q_proj, model.embed_tokens]", "model.embed_tokens cannot be adapted"),
        ("prompts.people={9: 1}", "people"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(SMOKE, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("offline=null", "add an `offline:` section"),
        ("objective={name: grpo}", "remove the `offline:` section"),
        ("teacher=null", "needs a teacher"),
        ("rollout.temperature=0.7", "cross-entropy is taken at temperature 1"),
        ("objective.reference_kl=0.1", "leave objective.reference_kl at 0"),
        ("offline.trace=somewhere", "did you mean `traces`"),
        ("offline.rollout.top_p=0.9", "unknown key"),
        ("offline.top_p=0", "top_p"),
    ],
)
def test_a_wrong_setting_of_an_offline_run_is_refused_with_its_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(CONFIGS / "offline_kk_cpu.yaml", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.pi_old=recompute"], "needs training.updates_per_step 1, got 2"),
        (
            ["learner.pi_old=recompute", "training.updates_per_step=1", "training.max_staleness=1"],
            "which with training.max_staleness above 0 are older",
        ),
    ],
)
def test_pi_old_cannot_be_recomputed_from_weights_that_did_not_sample(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(SMOKE, overrides)


ON_GPUS = ["training.updates_per_step=1", "learner.gpus_per_rank=1", "rollout.gpus_per_worker=1"]
SHARED_GPU = [
    "training.updates_per_step=1", "weights.transport=ipc", "learner.gpus_per_rank=0.4", "rollout.gpus_per_worker=0.5", "rollout.max_workers=1",
    "rollout.gpu_memory_fraction=0.5",
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["weights.transport=gloo"],
            "between the updates of a step are of no version.*set training.updates_per_step to 1",
        ),
        (
            [*ON_GPUS, "weights.transport=gloo"],
            "'gloo' is for runs without GPUs, but learner.gpus_per_rank is 1 .*take nccl",
        ),
        (
            ["training.updates_per_step=1", "weights.transport=nccl"],
            "needs a whole GPU for every rank of the learner.*learner.gpus_per_rank is 0",
        ),
        ([*ON_GPUS, "weights.transport=nccl", "learner.gpus_per_rank=0.5"], "learner.gpus_per_rank is 0.5"),
        (
            [*ON_GPUS, "weights.transport=nccl", "rollout.tensor_parallel=2"],
            "an engine's 2 processes, but .*rollout.gpus_per_worker 1: raise them",
        ),
        (
            [*ON_GPUS, "weights.transport=ipc"],
            "one learner rank and one rollout worker on the same GPU.*rollout.max_workers",
        ),
        ([*SHARED_GPU, "learner.ranks=2"], "no pools of several are placed in pairs"),
        (
            [*SHARED_GPU, "learner.gpus_per_rank=0.6"],
            "on one GPU, as shares of it, but learner.gpus_per_rank is 0.6 and rollout.gpus_per_worker 0.5",
        ),
        (
            [*SHARED_GPU, "rollout.gpu_memory_fraction=0.9"],
            "leaves the learner too little of their GPU: set it to at most .*0.5",
        ),
        ([*SHARED_GPU, "cluster.pool_labels=true"], "on nodes of their own"),
        (["weights.transport=rdma"], "object_store"),
    ],
)
def test_a_transport_of_weights_that_cannot_work_is_refused_with_its_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(SMOKE, overrides)


def test_transports_of_weights_that_can_work_are_taken() -> None:
    assert load_run_config(SMOKE).weights.transport == "object_store"
    assert load_run_config(SMOKE, ["training.updates_per_step=1", "weights.transport=gloo"]).weights.transport == "gloo"
    assert load_run_config(SMOKE, [*ON_GPUS, "weights.transport=nccl", "learner.ranks=4"]).weights.transport == "nccl"
    assert load_run_config(SMOKE, SHARED_GPU).weights.transport == "ipc"


def test_with_traces_at_hand_an_offline_run_needs_no_teacher() -> None:
    config = load_run_config(CONFIGS / "offline_kk_cpu.yaml", ["offline.traces=runs/other/traces", "teacher=null"])
    assert not config.needs_teacher
    assert load_run_config(CONFIGS / "offline_kk_cpu.yaml").needs_teacher


def test_the_teacher_s_engines_take_the_student_s_settings_where_they_have_none_of_their_own() -> None:
    config = load_run_config(
        CONFIGS / "offline_kk_cpu.yaml",
        ["offline.rollout={max_response_tokens: 1024, workers: 3}", "rollout.threads=2"],
    )
    assert config.offline is not None
    changed = {"max_response_tokens": 1024, "workers": 3}
    assert config.offline.generator_of(config.rollout).model_dump() == {**config.rollout.model_dump(), **changed}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at .*nowhere\.yaml"):
        load_run_config(tmp_path / "nowhere.yaml")


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [unclosed")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_run_config(path)


def test_the_vllm_teacher_is_refused_at_another_temperature() -> None:
    with pytest.raises(ConfigError, match="temperature 1 only"):
        load_run_config(SMOKE, ["teacher.engine=vllm", "rollout.temperature=0.8"])
