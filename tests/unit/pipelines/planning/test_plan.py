"""`rlad plan` finds what is wrong with a run in seconds, and the paper's configurations plan clean on the clusters they are for."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from pipelines.cluster.resources import Resources
from pipelines.planning.model_shape import ModelShape
from pipelines.planning.plan import Finding, Plan, make_plan
from pipelines.planning.pool_plans import GIB, engine_gib, learner_gib, offloaded_gib
from rlad.config import LearnerConfig, RunConfig, load_run_config
from rlad.data.chat import tokenizer_fingerprint

CONFIGS = Path(__file__).parents[4] / "configs"
CPU_MACHINE = Resources(cpus=2, gpus=0)
BYTES = "rollout.max_prompt_tokens=4096"  # the tokenizer of these tests has a token a byte


def write_shape(
    directory: Path,
    *,
    hidden: int,
    layers: int,
    feed_forward: int,
    heads: int,
    tied: bool,
    other_vocabulary: bool = False,
) -> Path:
    """A model directory without weights: what a plan looks at."""
    Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=tied,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=other_vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=alphabet[0])
    fast.chat_template = "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    return {
        "0.6B": write_shape(root / "0.6B", hidden=1024, layers=28, feed_forward=3072, heads=16, tied=True),
        "1.7B": write_shape(root / "1.7B", hidden=2048, layers=28, feed_forward=6144, heads=16, tied=True),
        "8B": write_shape(root / "8B", hidden=4096, layers=36, feed_forward=12288, heads=32, tied=False),
        "32B": write_shape(root / "32B", hidden=5120, layers=64, feed_forward=25600, heads=64, tied=False),
    }


def errors(plan: Plan) -> list[str]:
    return [finding.text for finding in plan.findings if finding.level == "error"]


def prompt_files(directory: Path, task: str = "math") -> list[str]:
    for name in ("train", "evaluation"):
        rows = [
            {"id": f"{name}{index}", "prompt": f"{name} {index}", "task": task, "answer": "1"} for index in range(4)
        ]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"prompts.path={directory / 'train.jsonl'}", f"evaluation.prompts.path={directory / 'evaluation.jsonl'}"]


@pytest.mark.parametrize(
    ("name", "student", "teacher", "cluster", "gpu_memory_gib"),
    [
        ("qwen3_0.6b_kk_2k", "0.6B", "8B", Resources(cpus=256, gpus=8), 80),
        ("qwen3_1.7b_kk_8k", "1.7B", "8B", Resources(cpus=256, gpus=8), 80),
        ("qwen3_8b_math_30k", "8B", "32B", Resources(cpus=1024, gpus=64), 141),
    ],
)
def test_the_paper_s_configurations_fit_their_clusters(
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
    assert not any(finding.level == "warning" for finding in plan.findings)


def test_a_cluster_that_is_too_small_is_refused_with_what_each_pool_asks(qwen: dict[str, Path]) -> None:
    config = load_run_config(
        CONFIGS / "qwen3_0.6b_kk_2k.yaml",
        [f"student.path={qwen['0.6B']}", f"teacher.path={qwen['8B']}", "prompts.count=64", BYTES],
    )
    (problem,) = errors(make_plan(config, Resources(cpus=64, gpus=4), gpu_memory_gib=80))
    assert "too few GPUs" in problem
    assert "need 8 (rollout 4, learner 2, teacher 2), the cluster has 4" in problem


def test_an_offline_run_needs_room_for_generation_and_for_training_but_not_for_both_at_once(
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


def test_a_teacher_too_large_for_its_gpus_is_refused(qwen: dict[str, Path]) -> None:
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


def test_several_teachers_are_all_placed_sized_and_compared(qwen: dict[str, Path], tmp_path: Path) -> None:
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
    assert "no prompt is for teacher foreign" in problems[1]
    assert "a teacher-large worker needs about 6" in problems[2]


def test_a_model_that_is_not_there_is_named() -> None:
    config = load_run_config(CONFIGS / "smoke_cpu.yaml", ["student.path=/nowhere/student"])
    problems = errors(make_plan(config, CPU_MACHINE, gpu_memory_gib=80))
    assert any("/nowhere/student" in problem for problem in problems)


def test_a_missing_prompt_file_and_a_task_without_a_verifier_are_named(qwen: dict[str, Path], tmp_path: Path) -> None:
    base = [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}"]
    cluster = Resources(cpus=1024, gpus=64)
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", base)
    (problem,) = errors(make_plan(config, cluster, gpu_memory_gib=141))
    assert "no prompt file at data/skywork_or1_math.jsonl" in problem
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", [*base, *prompt_files(tmp_path, task="chess")])
    (problem,) = errors(make_plan(config, cluster, gpu_memory_gib=141))
    assert "no verifier for task chess" in problem


def test_a_verifier_that_cannot_be_built_is_named(qwen: dict[str, Path], tmp_path: Path) -> None:
    function = "{name: python_function, path: 'no_such_module:judge'}"
    overrides = [
        f"student.path={qwen['8B']}",
        f"teacher.path={qwen['32B']}",
        f"verifiers.own={function}",
        *prompt_files(tmp_path),
    ]
    plan = make_plan(
        load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", overrides),
        Resources(cpus=1024, gpus=64),
        gpu_memory_gib=141,
    )
    [error] = errors(plan)
    assert error.startswith("verifier of task own: the verifier function 'no_such_module:judge' cannot be imported")
    assert "verifier of task math: math_answer" in [finding.text for finding in plan.findings if finding.level == "ok"]


def test_a_reward_model_is_a_pool_of_its_own_and_reads_the_students_tokens(
    qwen: dict[str, Path], tmp_path: Path
) -> None:
    def plan_with(reward_model: Path) -> Plan:
        settings = f"{{name: reward_model, path: {reward_model}, workers: 3, gpus_per_worker: 1, cpus_per_worker: 2}}"
        overrides = [
            f"student.path={qwen['8B']}",
            f"teacher.path={qwen['32B']}",
            f"verifiers.math={settings}",
            *prompt_files(tmp_path),
        ]
        return make_plan(
            load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", overrides),
            Resources(cpus=1024, gpus=67),
            gpu_memory_gib=141,
        )

    plan = plan_with(qwen["0.6B"])
    assert errors(plan) == []
    [pool] = [pool for pool in plan.pools if pool.pool == "reward_math"]
    assert (pool.workers, pool.resources) == (3, Resources(cpus=6, gpus=3))
    assert pool.worker_gib == pytest.approx(596_049_920 * 2 / GIB + 1)  # Qwen3-0.6B in bfloat16, and a process
    other = write_shape(
        tmp_path / "other", hidden=1024, layers=28, feed_forward=3072, heads=16, tied=True, other_vocabulary=True
    )
    assert errors(plan_with(other)) == [
        "verifier of task math: student and reward_math have different vocabularies: the reward_math scores the student's token ids, "
        "so both must share one tokenizer"
    ]
    assert ["verifier of task math" in error for error in errors(plan_with(tmp_path / "nowhere"))] == [True]


def test_evaluating_on_training_prompts_is_refused(qwen: dict[str, Path], tmp_path: Path) -> None:
    train, _ = prompt_files(tmp_path)
    same = f"evaluation.{train}"
    config = load_run_config(
        CONFIGS / "qwen3_8b_math_30k.yaml", [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}", train, same]
    )
    (problem,) = errors(make_plan(config, Resources(cpus=1024, gpus=64), gpu_memory_gib=141))
    assert "4 evaluation prompts are also trained on" in problem


def test_memory_of_engine_and_learner_by_hand() -> None:
    shape = ModelShape(
        parameters=GIB, hidden=0, layers=0, vocabulary=0, attention_width=0, kv_values_per_token=1024, max_tokens=0
    )
    # 2 GiB of bfloat16 weights, 1024 tokens * 1024 values * 2 bytes = 2 MiB of cache, and one process on each of 2 GPUs.
    assert engine_gib(shape, "bfloat16", 2, 1024) == pytest.approx(2 + 2 / 1024 + 2)
    on_gpu = {"gpus_per_rank": 1, "ranks": 4}
    for stage, bytes_per_parameter in {0: 16, 1: 4 + 12 / 4, 2: 2 + 14 / 4, 3: 16 / 4}.items():
        config = LearnerConfig(zero_stage=stage, **on_gpu)
        assert learner_gib(shape, config) == pytest.approx(bytes_per_parameter + 1)
    offloaded = LearnerConfig(zero_stage=3, offload_optimizer=True, **on_gpu)
    assert learner_gib(shape, offloaded) == pytest.approx(1 + 1)


def test_memory_of_a_learner_with_adapters_by_hand() -> None:
    layers = (("model.layers.0.self_attn.q_proj", 2 * GIB), ("model.layers.0.mlp.up_proj", GIB))
    shape = ModelShape(
        parameters=100 * GIB,
        hidden=0,
        layers=0,
        vocabulary=0,
        attention_width=0,
        kv_values_per_token=0,
        max_tokens=0,
        linear_layers=layers,
    )
    on_gpu: dict[str, Any] = {"gpus_per_rank": 1, "ranks": 4, "lora": {"rank": 2}}
    # 100 GiB of weights and 6 of adapters; gradients and optimizer state of the adapters alone.
    for stage, gib in {0: 212 + 6 * 14, 1: 212 + 6 * (2 + 3), 2: 212 + 6 * 3.5, 3: 53 + 6 * 3.5}.items():
        assert learner_gib(shape, LearnerConfig(zero_stage=stage, **on_gpu)) == pytest.approx(gib + 1)
    on_gpu["lora"] = {"rank": 2, "target_modules": ["up_proj"]}
    assert learner_gib(shape, LearnerConfig(zero_stage=3, offload_optimizer=True, **on_gpu)) == pytest.approx(
        2 * 102 / 4 + 2 * 2 / 4 + 1
    )


def test_adapters_are_counted_and_a_target_that_the_student_lacks_is_an_error(
    qwen: dict[str, Path], tmp_path: Path
) -> None:
    def configured(*overrides: str) -> RunConfig:
        settings = [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}", *prompt_files(tmp_path), *overrides]
        return load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", settings)

    def findings(*overrides: str) -> list[Finding]:
        return make_plan(configured(*overrides), Resources(cpus=1024, gpus=64), gpu_memory_gib=141).findings

    # Of 36 layers q and o have 4096 + 4096 inputs and outputs, k and v 4096 + 1024, the three of the MLP 4096 + 12288.
    trained = 36 * 8 * (2 * 8192 + 2 * 5120 + 3 * 16384)
    assert f"LoRA adapters of rank 8 train {trained / 1e6:.1f} of 8191 million parameters" in [
        finding.text for finding in findings("learner.lora.rank=8")
    ]
    assert offloaded_gib(configured("learner.lora.rank=8")) == pytest.approx(12 * trained / 16 / GIB)
    wrong = findings("learner.lora.target_modules=[q_proj, qkv_proj]")
    assert [finding.text for finding in wrong if finding.level == "error"] == [
        "learner.lora.target_modules: the student has no linear layer qkv_proj"
    ]


class Service(ThreadingHTTPServer):
    """Says what a teacher service says of itself, to whoever has the token."""

    def __init__(self, identity: dict[str, Any]) -> None:
        body = json.dumps(identity).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = (
                    self.path == "/kk/v1/teacher" and self.headers["Authorization"] == "Bearer a-token-of-this-test"
                )
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def shared(qwen: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Plan]]:
    """Plans a run under a service that says this of itself."""
    monkeypatch.setenv("RLAD_TEACHER_TOKEN", "a-token-of-this-test")
    with contextlib.ExitStack() as closing:

        def plan(*overrides: str, **identity: Any) -> Plan:
            fingerprint = tokenizer_fingerprint(qwen["0.6B"])
            told = {
                "teacher": "ab" * 16,
                "tokenizer": fingerprint,
                "engine": "vllm",
                "vocabulary": 151_936,
                "max_groups_per_client": 32,
                **identity,
            }
            service = closing.enter_context(Service(told))
            threading.Thread(target=service.serve_forever, args=(0.02,), daemon=True).start()
            closing.callback(service.shutdown)
            url = f"teacher.url=http://127.0.0.1:{service.server_port}/kk"
            config = load_run_config(
                CONFIGS / "qwen3_0.6b_kk_2k.yaml",
                [f"student.path={qwen['0.6B']}", "prompts.count=64", BYTES, url, *overrides],
            )
            return make_plan(config, Resources(cpus=256, gpus=6), gpu_memory_gib=80)

        yield plan


def test_a_shared_teacher_is_asked_and_takes_no_gpus(shared: Callable[..., Plan]) -> None:
    plan = shared()
    assert errors(plan) == [], "6 GPUs hold the run without its teacher's 2"
    assert "teacher" not in [pool.pool for pool in plan.pools]
    assert any("model abababababab" in finding.text and finding.level == "ok" for finding in plan.findings)


def test_what_does_not_fit_a_shared_teacher_is_an_error(shared: Callable[..., Plan]) -> None:
    (problem,) = errors(shared(tokenizer="another"))
    assert "use a teacher and a student with one vocabulary" in problem
    (problem,) = errors(shared("teacher.fingerprint=cdcd"))
    assert "the configuration wants cdcd" in problem
    (problem,) = errors(shared("rollout.temperature=0.5"))
    assert "vllm engine scores at temperature 1 only" in problem


def test_a_shared_teacher_that_cannot_be_asked_from_here_is_a_warning(
    qwen: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [f"student.path={qwen['0.6B']}", "prompts.count=64", BYTES]

    def warnings(*overrides: str) -> list[str]:
        plan = make_plan(
            load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*base, *overrides]),
            Resources(cpus=256, gpus=6),
            gpu_memory_gib=80,
        )
        assert errors(plan) == []
        return [finding.text for finding in plan.findings if finding.level == "warning"]

    monkeypatch.delenv("RLAD_TEACHER_TOKEN", raising=False)
    assert warnings("teacher.service=kk") == [
        "teacher service kk is not checked: --address is not set"
    ]
    (no_token,) = warnings("teacher.url=http://127.0.0.1:9/kk")
    assert "set RLAD_TEACHER_TOKEN" in no_token
    monkeypatch.setenv("RLAD_TEACHER_TOKEN", "a-token-of-this-test")
    (unreachable,) = warnings("teacher.url=https://127.0.0.1:9/kk")
    assert "cannot be reached from this machine: the teacher at https://127.0.0.1:9/kk is not reachable" in unreachable
