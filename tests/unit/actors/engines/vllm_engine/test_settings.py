"""Environment and default arguments of vLLM engines, without vLLM."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.engines.vllm_engine.settings import VllmSettings, _gpu_defaults, _merged, environment

ON_GPU = VllmSettings(
    model_path="model",
    dtype="bfloat16",
    max_sequence_tokens=64,
    max_sequences=8,
    seed=0,
    on_gpu=True,
    tensor_parallel=1,
    gpu_memory_fraction=0.9,
    kv_cache_gib=1,
    threads=3,
)


def test_engines_on_gpu_use_no_kernel_that_needs_a_cuda_toolkit() -> None:
    assert environment(ON_GPU)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "compilation_config" not in _gpu_defaults(ON_GPU)
    parallel = _gpu_defaults(replace(ON_GPU, tensor_parallel=2))
    assert parallel["compilation_config"] == {"pass_config": {"fuse_allreduce_rms": False}}


def test_settings_of_cpu_engines_do_not_reach_gpu_engines() -> None:
    only_cpu = {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "TORCHDYNAMO_DISABLE"}
    assert only_cpu.isdisjoint(environment(ON_GPU))
    on_cpu = environment(replace(ON_GPU, on_gpu=False))
    assert on_cpu["OMP_NUM_THREADS"] == "3"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in on_cpu


def test_arguments_of_a_configuration_override_single_defaults() -> None:
    defaults = {"a": 1, "nested": {"x": {"p": 1, "q": 2}, "y": 3}}
    assert _merged(defaults, {"nested": {"x": {"q": 7}}}) == {"a": 1, "nested": {"x": {"p": 1, "q": 7}, "y": 3}}
    assert _merged(defaults, {"nested": 5, "b": 2}) == {"a": 1, "nested": 5, "b": 2}


def test_engines_on_gpu_report_their_cache_unless_the_site_sets_another_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    levels = [environment(replace(ON_GPU, on_gpu=on_gpu))["VLLM_LOGGING_LEVEL"] for on_gpu in (True, False)]
    assert levels == ["INFO", "WARNING"]
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert environment(ON_GPU)["VLLM_LOGGING_LEVEL"] == "DEBUG"
