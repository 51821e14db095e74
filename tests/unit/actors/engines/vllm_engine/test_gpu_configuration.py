"""Engines of every shipped GPU configuration, as vLLM configures them on H200, and its kernel of log-probabilities.

No GPU is needed: vLLM's platform is replaced in a process of its own, and the kernel runs in Triton's interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[5]
CONFIGS = [*sorted((ROOT / "configs").glob("qwen3_*.yaml")), ROOT / "configs" / "smoke_gpu.yaml"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("fake_cuda.py")),
            str(tmp_path_factory.mktemp("models")),
            *map(str, CONFIGS),
        ],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


@pytest.fixture(scope="module")
def engines(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the facts of each engine, by configuration and pool."""
    return {f"{name}/{pool}": facts for name, pools in found["engines"].items() for pool, facts in pools.items()}


def test_every_shipped_gpu_configuration_has_a_student_and_a_teacher_engine(engines: dict[str, Any]) -> None:
    assert engines.keys() == {f"{path.name}/{pool}" for path in CONFIGS for pool in ("rollout", "teacher")}
    assert engines["qwen3_8b_math_30k.yaml/teacher"]["tensor_parallel"] == 2


def test_bfloat16_engines_have_a_float32_output_layer(engines: dict[str, Any]) -> None:
    for name, facts in engines.items():
        assert (facts["dtype"], facts["head_dtype"]) == ("torch.bfloat16", "torch.float32"), name


def test_no_engine_uses_kernels_that_are_compiled_with_a_cuda_toolkit(engines: dict[str, Any]) -> None:
    for name, facts in engines.items():
        assert facts["environment"]["VLLM_USE_FLASHINFER_SAMPLER"] == "0", name
        assert facts["fuse_allreduce_rms"] is False, name


def test_engines_run_the_code_that_the_project_was_written_for(engines: dict[str, Any]) -> None:
    """Masks replace `compute_logits`, which sharded sampling does not call."""
    for name, facts in engines.items():
        assert facts["is_second_runner"] is True, name
        assert facts["async_scheduling"] is True, name
        assert facts["cudagraph_mode"] == "FULL_AND_PIECEWISE", name
        assert facts["batch_sharded_sampling"] is False, name
        assert facts["logprobs_mode"] == ("processed_logprobs" if name.endswith("rollout") else "raw_logprobs"), name


def test_prefill_batches_fill_a_gpu(engines: dict[str, Any]) -> None:
    assert {facts["max_batched_tokens"] for facts in engines.values()} == {8192}


def test_kernel_of_log_probabilities_equals_log_softmax(found: dict[str, Any]) -> None:
    kernel, expected = (np.array(found["logprobs"][name]) for name in ("kernel", "expected"))
    assert kernel.shape == (5, 2)
    np.testing.assert_allclose(kernel[:4], expected[:4], atol=1e-5)
    np.testing.assert_allclose(kernel[4], expected[4], atol=1e-5)
