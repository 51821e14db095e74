"""`engine_args` take what vLLM knows, and nothing that rlad determines itself."""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from pathlib import Path

import pytest

from rlad.config.engine_arguments.check import RESERVED, require_engine_arguments
from rlad.config.engine_arguments.names import ENGINE_ARGUMENTS
from rlad.config.load import load_run_config
from rlad.errors import ConfigError

CONFIG = Path(__file__).parents[5] / "configs" / "qwen3_1.7b_kk_8k.yaml"


def installed_names() -> set[str]:
    """Return the fields of the installed `AsyncEngineArgs`, read from its source: importing vLLM takes 15 s."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    return {
        field.target.id
        for each in classes
        if each.name in ("EngineArgs", "AsyncEngineArgs")
        for field in each.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def test_known_names_are_those_of_the_installed_vllm() -> None:
    names = {name for name in installed_names() if not name.startswith("_")}
    assert len(names) > 200
    assert names == ENGINE_ARGUMENTS, textwrap.fill(" ".join(sorted(names)), 116, break_on_hyphens=False)
    assert RESERVED.keys() <= names


def test_every_argument_that_is_not_reserved_is_accepted() -> None:
    for scores in (False, True):
        kept = {"max_num_seqs", "max_num_batched_tokens", "max_logprobs", *(["pooler_config"] if scores else [])}
        free = ENGINE_ARGUMENTS - RESERVED.keys() - kept
        require_engine_arguments({name: 1 for name in free if not name.startswith("data_parallel_")}, scores=scores)
    require_engine_arguments({"max_num_batched_tokens": 64, "max_logprobs": 3}, scores=False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rollout.engine_args.quantisation=fp8", "rollout: engine_args.quantisation is no argument.*`quantization`"),
        ("rollout.engine_args.xyzzy=1", r"engine_args.xyzzy is no argument of vLLM's AsyncEngineArgs$"),
        ("rollout.engine_args.seed=1", "engine_args.seed cannot be set, because it derives from the setting `seed`"),
        ("rollout.engine_args.max-num-seqs=1", "max_num_seqs cannot be set, because it is the setting `max_sequences`"),
        ("rollout.engine_args.hf_token=1", "configurations hold no secrets"),
        ("rollout.engine_args.data_parallel_size=2", "rlad places one engine on the GPUs of one worker"),
        ("teacher.engine_args.max_num_batched_tokens=9", "teacher: engine_args.* it is the setting `token_budget`"),
        ("teacher.engine_args.tensor_parallel_size=2", "it is the setting `tensor_parallel`"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(CONFIG, [setting])


def test_arguments_of_vllm_require_vllm() -> None:
    load_run_config(CONFIG, ["teacher.engine_args={quantization: fp8}"])
    with pytest.raises(ConfigError, match="engine_args require engine 'vllm'; got engine 'transformers'"):
        load_run_config(CONFIG, ["teacher.engine_args={quantization: fp8}", "teacher.engine=transformers"])


def test_trace_generation_inherits_or_replaces_the_arguments() -> None:
    base = load_run_config(CONFIG.with_name("offline_kk_cpu.yaml"), ["rollout.engine_args.block_size=16"])
    assert base.offline is not None
    assert base.offline.generator_of(base.rollout).engine_args == {"block_size": 16}
    replaced = base.offline.model_copy(
        update={"rollout": base.offline.rollout.model_copy(update={"engine_args": {"async_scheduling": False}})}
    )
    assert replaced.generator_of(base.rollout).engine_args == {"async_scheduling": False}
