"""Models whose context is too small for a prompt and a response are refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.cluster.resources import Resources
from pipelines.planning.plan import make_plan
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.resolution.resolved_run import resolve_run
from pipelines.resolution.teacher_context import LongestPrompt, longest_prompts, require_context
from pipelines.run.directory import RunDirectory
from rlad.config import RunConfig, load_run_config
from rlad.data.records import PromptRecord
from rlad.errors import PlanError

CONFIGS = Path(__file__).parents[4] / "configs"
CONTEXT = 512  # of the tiny models

PLAIN = LongestPrompt(prompt_id="p", num_tokens=100, is_privileged=False)


def privileged_run(model: Path, template: str) -> RunConfig:
    overrides = [f"student.path={model}", f"teacher.path={model}", f"teacher.prompt_template='{template}'"]
    overrides += ["rollout.max_response_tokens=64"]
    return load_run_config(CONFIGS / "smoke_cpu.yaml", overrides)


def test_prompt_and_response_may_fill_the_context() -> None:
    require_context("teacher", 148, PLAIN, max_response_tokens=48)
    with pytest.raises(PlanError, match=r"teacher has a context of 147 tokens; prompt p has 100 tokens and a response"):
        require_context("teacher", 147, PLAIN, max_response_tokens=48)
    with pytest.raises(PlanError, match=r"100 tokens with its prompt_template and .*: shorten the prompt_template of"):
        require_context("teacher", 147, replace(PLAIN, is_privileged=True), max_response_tokens=48)


def test_each_pool_has_the_longest_of_its_own_prompts() -> None:
    """Teacher `own` scores prompt 1 behind its template, `plain` scores prompt 2, and the reference scores both."""
    config = load_run_config(
        CONFIGS / "smoke_cpu.yaml",
        [
            "teacher=null",
            "teachers={own: {path: /m, prompt_template: '{question}'}, plain: {path: /p}}",
            "teacher_routes.knights_knaves=own",
            "objective.reference_kl=0.1",
            "reference={}",
        ],
    )
    prompts = EncodedPrompts(
        records=[PromptRecord(id=name, task="knights_knaves", prompt=name, answer="T") for name in ("1", "2")],
        token_ids=[np.arange(1, dtype=np.int32), np.arange(2, dtype=np.int32)],
    )
    found = longest_prompts(
        config, prompts, {"1": {"own": 1.0}, "2": {"plain": 1.0}}, {"own": {"1": np.arange(9, dtype=np.int32)}}
    )
    assert {pool: (each.prompt_id, each.num_tokens, each.is_privileged) for pool, each in found.items()} == {
        "teacher-own": ("1", 9, True),
        "teacher-plain": ("2", 2, False),
        "reference": ("2", 2, False),
    }


def test_template_that_exceeds_the_context_is_refused_by_run_and_plan(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Puzzles of two people have at most 13 tokens, and responses 64."""
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    fitting = privileged_run(make_model(), "{question}" + "T" * (CONTEXT - 64 - 13))
    run = resolve_run(fitting, directory)
    lengths = {len(ids) for ids in run.teacher_prompts["teacher"].values()}
    assert max(lengths) <= CONTEXT - 64
    too_long = privileged_run(make_model(), "{question}" + "T" * (CONTEXT - 64))
    with pytest.raises(PlanError, match="teacher has a context of 512 tokens; prompt kk2-.*with its prompt_templ"):
        resolve_run(too_long, directory)
    for config, is_refused in ((fitting, False), (too_long, True)):
        plan = make_plan(config, Resources(cpus=4, gpus=0), gpu_memory_gib=80)
        found = [finding.text for finding in plan.findings if "has a context of 512 tokens" in finding.text]
        assert bool(found) == is_refused == plan.has_errors
