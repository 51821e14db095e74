"""Prompts and verifiers in `rlad plan`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipelines.cluster.resources import Resources
from pipelines.planning.plan import Plan, make_plan
from pipelines.planning.pool_plans import GIB
from pipelines.resolution.resolved_run import resolve_run
from pipelines.resolution.tokenizer_findings import tokenizer_findings
from pipelines.run.directory import RunDirectory
from rlad.config import load_run_config
from rlad.errors import PlanError
from rlad.models.tokenizer_checks import check_tokenizer

from .plan_inputs import BYTES, CONFIGS, errors, prompt_files, write_shape


def test_missing_prompt_file_and_missing_verifier_are_named(qwen: dict[str, Path], tmp_path: Path) -> None:
    base = [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}"]
    cluster = Resources(cpus=1024, gpus=64)
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", base)
    (problem,) = errors(make_plan(config, cluster, gpu_memory_gib=141))
    assert "no prompt file at data/skywork_or1_math.jsonl" in problem
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", [*base, *prompt_files(tmp_path, task="chess")])
    (problem,) = errors(make_plan(config, cluster, gpu_memory_gib=141))
    assert "no verifier for task chess" in problem


def test_verifier_that_cannot_be_imported_is_named(qwen: dict[str, Path], tmp_path: Path) -> None:
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


def test_reward_model_is_a_pool_and_needs_the_students_tokenizer(qwen: dict[str, Path], tmp_path: Path) -> None:
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
    [error] = errors(plan_with(other))
    assert error.startswith("verifier of task math: student and reward_math have different vocabularies")
    assert "tokenizer" in error
    assert ["verifier of task math" in error for error in errors(plan_with(tmp_path / "nowhere"))] == [True]


def test_evaluation_on_training_prompts_is_refused(qwen: dict[str, Path], tmp_path: Path) -> None:
    train, _ = prompt_files(tmp_path)
    same = f"evaluation.{train}"
    config = load_run_config(
        CONFIGS / "qwen3_8b_math_30k.yaml", [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}", train, same]
    )
    (problem,) = errors(make_plan(config, Resources(cpus=1024, gpus=64), gpu_memory_gib=141))
    assert "4 evaluation prompts are also training prompts" in problem


def test_prompts_that_are_too_long_are_counted(qwen: dict[str, Path], tmp_path: Path) -> None:
    overrides = prompt_files(tmp_path)
    long = {"id": "long", "prompt": "x" * 5000, "task": "math", "answer": "1"}  # the tests' tokenizer counts bytes
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    settings = [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}", *overrides, BYTES]
    plan = make_plan(
        load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", settings),
        Resources(cpus=1024, gpus=64),
        gpu_memory_gib=141,
    )
    assert errors(plan) == []
    texts = [finding.text for finding in plan.findings if finding.level == "warning"]
    assert "1 training prompts are left out: longer than rollout.max_prompt_tokens (4096)" in texts


def test_answers_that_the_verifier_cannot_read_are_refused_by_plan_and_run(
    qwen: dict[str, Path], tmp_path: Path
) -> None:
    overrides = [
        f"student.path={qwen['8B']}",
        f"teacher.path={qwen['32B']}",
        "verifiers.math={name: multiple_choice}",
        *prompt_files(tmp_path),
    ]
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml", overrides)
    found = errors(make_plan(config, Resources(cpus=1024, gpus=64), gpu_memory_gib=141))
    assert [text.split(" cannot earn a reward. ")[0] for text in found] == [
        f"{name} prompts of task math: all 4 answers tried with verifier multiple_choice, 4"
        for name in ("training", "evaluation")
    ]
    assert (
        f"{tmp_path / 'train.jsonl'}, line 1: multiple_choice: the answer of a question must be one letter" in found[0]
    )
    run = tmp_path / "run"
    with pytest.raises(PlanError, match="training prompts of task math") as raised:
        resolve_run(config, RunDirectory(run))
    assert "\n".join(found) == str(raised.value)
    assert not run.exists()


def test_special_answer_tags_that_decoding_keeps_are_no_finding(qwen: dict[str, Path], tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(qwen["0.6B"], student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>", "</answer>"]})
    tokenizer.save_pretrained(student)
    overrides = [
        f"student.path={student}",
        f"teacher.path={student}",
        BYTES,
        "prompts.count=8",
        "evaluation.prompts.count=7",
    ]
    config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", overrides)
    assert not any("decoding drops" in finding.message for finding in tokenizer_findings(config, student, {}, ()))
    dropped = check_tokenizer(student, tokenizer, (), rows=None, required_tags=("<answer>", "</answer>"))
    assert any("decoding drops <answer>, </answer>" in finding.text for finding in dropped)
    [refused] = errors(make_plan(config, Resources(cpus=256, gpus=8), gpu_memory_gib=80))
    assert "'</answer>', which this tokenizer marks as a special token" in refused
