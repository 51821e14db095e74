"""Routes from prompts to teachers are resolved or refused before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from pipelines.cluster.resources import demand_by_pool
from pipelines.resolution.teacher_routing import (
    privileged_prompts,
    require_can_score,
    require_one_vocabulary,
    route_prompts,
)
from rlad.config import RunConfig, load_run_config
from rlad.data.chat import tokenizer_fingerprint
from rlad.data.records import PromptRecord
from rlad.errors import PlanError, VocabularyMismatchError
from rlad.teacher.wire_format import TeacherIdentity

TWO = {"algebra": {"path": "/models/a"}, "logic": {"path": "/models/l"}}


LIKELIEST = {"name": "opd", "estimator": "topk", "top_k": 4}
FULL = {"name": "opd", "estimator": "full"}
WITH_REFERENCE = {"name": "grpo", "reference_kl": 0.01}


def run_config(**settings: Any) -> RunConfig:
    knights = {"source": "knights_knaves", "people": {2: 1.0}, "count": 4}
    return RunConfig.model_validate(
        {
            "name": "teachers-test",
            "student": {"path": "/models/s"},
            "objective": {"name": "trrd"},
            "prompts": {**knights, "split": "train"},
            "verifiers": {"math": {"name": "math_answer"}, "knights_knaves": {"name": "knights_knaves"}},
            "training": {"steps": 1},
            "evaluation": {"prompts": {**knights, "split": "evaluation"}},
            **settings,
        }
    )


def prompt(name: str, task: str, **metadata: Any) -> PromptRecord:
    return PromptRecord(id=name, prompt="?", task=task, answer="1", metadata=metadata)


def check_vocabularies(config: RunConfig) -> None:
    models = {pool: Path(model.path) for pool, model in config.scoring_pools.items()}
    require_one_vocabulary(config, student=Path(config.student.path), scoring_models=models, reward_models={})


def test_the_teacher_in_a_prompt_s_metadata_overrides_its_task_s_route() -> None:
    config = run_config(teachers=TWO, teacher_routes={"math": "algebra", "knights_knaves": {"algebra": 1, "logic": 3}})
    records = [
        prompt("m", "math"),
        prompt("k", "knights_knaves"),
        prompt("n", "math", teacher_id=None),
        prompt("o", "math", teacher_id="logic"),
        prompt("p", "knights_knaves", teacher_id={"logic": 2, "algebra": None}),  # a row of a parquet file
    ]
    assert route_prompts(config, records) == {
        "m": {"algebra": 1.0},
        "k": {"algebra": 1.0, "logic": 3.0},
        "n": {"algebra": 1.0},
        "o": {"logic": 1.0},
        "p": {"logic": 2.0},
    }


@pytest.mark.parametrize(
    ("teachers", "name"),
    [({"teacher": {"path": "/models/t"}}, "teacher"), ({"teachers": {"only": {"path": "/t"}}}, "only")],
)
def test_a_single_teacher_needs_no_routes(teachers: dict[str, Any], name: str) -> None:
    assert route_prompts(run_config(**teachers), [prompt("m", "math")]) == {"m": {name: 1.0}}


def test_an_objective_without_a_teacher_has_no_routes() -> None:
    assert route_prompts(run_config(objective={"name": "grpo"}), [prompt("m", "math", teacher_id="algebra")]) == {
        "m": {}
    }


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [prompt("m", "math"), prompt("k", "knights_knaves")],
            r"task knights_knaves has no teacher: add it to teacher_routes.*prompt k has none",
        ),
        (
            [prompt("m", "math", teacher_id="physics")],
            "prompt m names the unknown teacher physics: known are algebra, logic",
        ),
        ([prompt("m", "math", teacher_id={"logic": 1, "physics": 1})], "prompt m names the unknown teacher physics"),
        (
            [prompt("m", "math", teacher_id={"logic": 0})],
            "prompt m: metadata `teacher_id` must be a teacher's id or a mapping of ids to positive weights",
        ),
        ([prompt("m", "math", teacher_id=7)], "got 7"),
        ([prompt("m", "math", teacher_id={})], "got {}"),
        ([prompt("m", "math")], "no prompt uses teacher logic, which would occupy machines without use"),
    ],
)
def test_invalid_routes_are_refused(records: list[PromptRecord], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        route_prompts(run_config(teachers=TWO, teacher_routes={"math": "algebra"}), records)


def test_a_mixture_is_refused_if_the_objective_needs_likeliest_tokens() -> None:
    config = run_config(teachers=TWO, teacher_routes={"math": "algebra"}, objective=LIKELIEST)
    mixed = [prompt("m", "math", teacher_id={"algebra": 1, "logic": 1})]
    with pytest.raises(PlanError, match="prompt m mixes several teachers.*give the prompt one teacher"):
        route_prompts(config, mixed)
    assert route_prompts(run_config(teachers=TWO, teacher_routes={"math": "algebra"}), mixed) == {
        "m": {"algebra": 1.0, "logic": 1.0}
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "objective 'trrd' requires a teacher"),
        ({"teacher": {"path": "/t"}, "teachers": TWO}, "`teacher` and `teachers` exclude each other"),
        ({"objective": {"name": "grpo"}, "teachers": TWO}, "uses no teacher; got a `teachers` section"),
        (
            {"objective": {"name": "grpo"}, "teacher_routes": {"math": "a"}},
            "uses no teacher; got a `teacher_routes` section",
        ),
        (
            {"teachers": TWO, "teacher_routes": {"math": "physics"}},
            "teacher_routes.math: unknown teacher physics; expected one of algebra, logic",
        ),
        (
            {"teachers": TWO, "teacher_routes": {"chess": "logic"}},
            "teacher_routes.chess: task chess has no verifier",
        ),
        ({"teachers": TWO, "teacher_routes": {"math": {"logic": -1}}}, "greater than 0"),
        ({"teachers": TWO, "teacher_routes": {"math": {}}}, "at least 1 item"),
        ({"teachers": {"a/b": {"path": "/t"}}}, "should match pattern"),
        (
            {"teachers": TWO, "teacher_routes": {"math": {"logic": 1, "algebra": 1}}, "objective": LIKELIEST},
            "Route the task to one teacher",
        ),
        (
            {"teachers": TWO, "rollout": {"temperature": 0.8}},
            "Set rollout.temperature to 1, or teachers.algebra.engine to transformers",
        ),
        (
            {"teacher": {"path": "/t"}, "objective": FULL},
            "full vocabulary, which teacher.engine 'vllm' does not return as log-probabilities. Set teacher.send",
        ),
        (
            {"teacher": {"path": "/t", "send": "hidden_states"}, "objective": LIKELIEST},
            "'hidden_states' requires objective.estimator 'full', because other estimators need",
        ),
        (
            {"teachers": {**TWO, "algebra": {"path": "/t", "send": "hidden_states"}}, "objective": FULL},
            "'hidden_states' requires a single teacher, because the learner holds one output layer; got",
        ),
        ({"objective": WITH_REFERENCE}, "requires a `reference` section; got null"),
        ({"objective": {"name": "grpo"}, "reference": {}}, "uses no reference policy; got a `reference` section"),
        (
            {"objective": WITH_REFERENCE, "reference": {}, "rollout": {"temperature": 0.8}},
            "or reference.engine to transformers",
        ),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        run_config(**settings)


def test_every_scoring_model_has_a_pool_and_the_reference_is_the_initial_student() -> None:
    config = run_config(
        teachers={**TWO, "logic": {"path": "/models/l", "replicas": 3, "gpus_per_replica": 2, "cpus_per_replica": 4}}
    )
    assert list(config.scoring_pools) == ["teacher-algebra", "teacher-logic"]
    demand = demand_by_pool(config)["teacher-logic"]
    assert (demand.cpus, demand.gpus) == (12, 6)
    referred = run_config(objective=WITH_REFERENCE, reference={"engine": "transformers", "replicas": 2})
    assert {pool: (model.path, model.engine) for pool, model in referred.scoring_pools.items()} == {
        "reference": ("/models/s", "transformers")
    }
    assert demand_by_pool(referred)["reference"].cpus == 2
    elsewhere = run_config(objective=WITH_REFERENCE, reference={"path": "/models/r"})
    assert elsewhere.scoring_pools["reference"].path == "/models/r"
    full = run_config(objective=FULL, teacher={"path": "/t", "engine": "transformers"})
    assert full.objective.teacher_support == full.teacher_support == "full"
    hidden = run_config(objective=FULL, teacher={"path": "/t", "send": "hidden_states"}, rollout={"temperature": 0.8})
    assert hidden.teacher_support == "hidden_states"
    assert hidden.hidden_state_teacher == ("teacher", hidden.teacher)


def test_a_teacher_without_a_token_of_the_student_is_refused_and_the_token_named(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    other, fewer = tmp_path / "other", make_model()
    shutil.copytree(make_model(seed=1), other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(other)
    alike, unlike = {"path": str(other)}, {"path": str(fewer)}
    base = {"student": {"path": str(other)}}
    check_vocabularies(run_config(**base, teachers={"a": alike, "b": alike}))
    named = "reads the student's token ids, but 1 tokens of the student differ at the teacher: 29 is 'new' and '!'"
    with pytest.raises(VocabularyMismatchError, match=f"student and teacher-b have different vocabularies.*{named}"):
        check_vocabularies(run_config(**base, teachers={"a": alike, "b": unlike}))
    with pytest.raises(VocabularyMismatchError, match="student and reference have different vocabularies"):
        check_vocabularies(run_config(**base, objective=WITH_REFERENCE, reference=unlike))
    check_vocabularies(run_config(student=unlike, teachers={"a": alike}))  # a teacher may have more tokens


def test_models_may_pad_their_output_layers_differently(make_model: Callable[..., Path], tmp_path: Path) -> None:
    padded = tmp_path / "padded"
    shutil.copytree(make_model(), padded)
    config_file = padded / "config.json"
    config_file.write_text(config_file.read_text().replace('"vocab_size": 30', '"vocab_size": 32'))
    for student, teacher in ((make_model(), padded), (padded, make_model())):
        models = {"student": {"path": str(student)}, "teacher": {"path": str(teacher), "engine": "transformers"}}
        for objective in ({}, {"objective": LIKELIEST}, {"objective": FULL}):
            check_vocabularies(run_config(**models, **objective))


def test_a_teacher_that_only_generates_traces_has_no_scoring_pool() -> None:
    config = load_run_config(Path(__file__).parents[4] / "configs" / "offline_kk_cpu.yaml")
    assert config.teacher is not None
    assert (config.teacher_pools, config.scoring_pools) == ({}, {})
    assert list(config.frozen_models) == ["teacher"]
    assert run_config(teachers=TWO).teacher_pools == {"algebra": "teacher-algebra", "logic": "teacher-logic"}
    assert run_config(teacher={"path": "/t"}).teacher_pools == {"teacher": "teacher"}


@pytest.mark.parametrize(
    ("engine", "vocabulary", "settings", "problem"),
    [
        ("vllm", 30, {}, None),
        ("transformers", 30, {"rollout": {"temperature": 0.7}}, None),
        ("vllm", 30, {"rollout": {"temperature": 0.7}}, "the teacher's vllm engine scores at temperature 1 only"),
        ("vllm", 30, {"objective": LIKELIEST}, None),
        (
            "vllm",
            30,
            {"objective": FULL},
            "requires the teacher's full vocabulary, which the vllm engine does not give",
        ),
        ("transformers", 30, {"objective": FULL}, None),
        ("transformers", 32, {"objective": FULL}, "output layers of teacher and student have 32 and 30 entries"),
    ],
)
def test_a_shared_teacher_that_cannot_score_what_the_run_needs_is_refused(
    make_model: Callable[..., Path],
    engine: Literal["vllm", "transformers"],
    vocabulary: int,
    settings: dict[str, Any],
    problem: str | None,
) -> None:
    student = make_model()
    config = run_config(teacher={"service": "kk"}, student={"path": str(student)}, **settings)
    identity = TeacherIdentity(
        teacher="t",
        tokenizer=tokenizer_fingerprint(student),
        engine=engine,
        vocabulary=vocabulary,
        max_groups_per_client=0,
    )
    if problem is None:
        require_can_score("teacher", identity, config, student=student)
    else:
        with pytest.raises(PlanError, match=problem):
            require_can_score("teacher", identity, config, student=student)
    larger = replace(identity, tokenizer="larger")
    if config.objective.teacher_support is not None and problem is None:
        with pytest.raises(PlanError, match="is shared and has more tokens than the student"):
            require_can_score("teacher", larger, config, student=student)
    elif problem is None:
        require_can_score("teacher", larger, config, student=student)


def test_privileged_teacher_has_a_prompt_for_each_of_its_prompts(make_model: Callable[..., Path]) -> None:
    """The tiny tokenizer has one token for each character. Teachers without a template have no entry."""
    settings = {"teachers": {"own": {"path": "/m", "prompt_template": "{question}={answer}:"}, "plain": {"path": "/p"}}}
    config = run_config(**settings, teacher_routes={"math": "own", "knights_knaves": "plain"})
    records = [
        PromptRecord(id="1", task="math", prompt="A&B", answer="T"),
        PromptRecord(id="2", task="knights_knaves", prompt="C", answer="F"),
    ]
    routes = route_prompts(config, records)
    tokenizer = AutoTokenizer.from_pretrained(make_model())
    found = privileged_prompts(config, records, routes, tokenizer)
    assert {name: list(prompts) for name, prompts in found.items()} == {"own": ["1"]}
    assert tokenizer.convert_ids_to_tokens(found["own"]["1"].tolist()) == list("A&B=T:")
    assert found["own"]["1"].dtype == "int32"
