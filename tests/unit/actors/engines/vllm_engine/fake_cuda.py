"""Program that builds vLLM's engine configurations as on a GPU, and runs a GPU kernel in Triton's interpreter.

It replaces vLLM's platform, so it runs as a process of its own. It prints one JSON object. Nothing runs on a GPU.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    "TRITON_INTERPRET": "1",
}

import torch

MODEL_TYPES = {"qwen3": "Qwen3ForCausalLM"}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}


def pretend_h200() -> None:
    """Make vLLM see eight H200. Its compiled extensions are replaced by empty modules."""
    for name in ("vllm._C_stable_libtorch", "vllm._moe_C_stable_libtorch"):
        sys.modules[name] = types.ModuleType(name)
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    answers: dict[str, Any] = {
        "get_device_capability": DeviceCapability(9, 0),
        "get_device_name": "NVIDIA H200",
        "get_device_total_memory": 141 * 2**30,
        "is_fully_connected": True,
        "device_count": 8,
        "num_compute_units": 132,
        "has_device_capability": True,
    }
    methods = {
        name: classmethod(lambda cls, *_, answer=answer, **__: answer)  # type: ignore[misc]
        for name, answer in answers.items()
    }
    vllm.platforms._current_platform = type("FakeCuda", (CudaPlatformBase,), methods)()
    import vllm.config.vllm
    import vllm.model_executor.models.registry as registry
    import vllm.utils.flashinfer

    # To write its cache of model properties, vLLM would import FlashAttention's CUDA extension here.
    registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda *_: None
    vllm.config.vllm.HAS_TRITON = True
    # As in the image: FlashInfer is installed. Its kernels are compiled at the first use, which needs a CUDA toolkit.
    vllm.utils.flashinfer.has_flashinfer = lambda: True


def write_model(reference: str, directory: Path) -> Path:
    """Write `config.json` and `generation_config.json` of a model in the built-in table, or of a tiny one."""
    from rlad.models.architectures import known_architecture

    known = dict(known_architecture(reference) or {"model_type": "qwen3", "vocab_size": 256, **TINY})
    path = directory / reference.replace("/", "--").replace(":", "--")
    path.mkdir(exist_ok=True)
    settings = {"max_position_embeddings": 40_960, "hidden_act": "silu", "rms_norm_eps": 1e-6, "dtype": "bfloat16"}
    architecture = {"architectures": [MODEL_TYPES[known["model_type"]]]}
    (path / "config.json").write_text(json.dumps({**settings, **known, **architecture}))
    sampling = {"eos_token_id": [1, 0], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True}
    (path / "generation_config.json").write_text(json.dumps(sampling))
    return path


def facts_of(settings: Any, arguments: Any) -> dict[str, Any]:
    """Return the parts of an engine's configuration that differ on a GPU, with the process environment."""
    from vllm.usage.usage_lib import UsageContext

    from actors.engines.vllm_engine.settings import environment

    arguments.skip_tokenizer_init = True
    config = arguments.create_engine_config(usage_context=UsageContext.ENGINE_CONTEXT)
    compilation = config.compilation_config
    return {
        "head_dtype": str(config.model_config.head_dtype),
        "dtype": str(config.model_config.dtype),
        "logprobs_mode": config.model_config.logprobs_mode,
        "is_second_runner": config.use_v2_model_runner,
        "async_scheduling": config.scheduler_config.async_scheduling,
        "max_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "batch_sharded_sampling": config.parallel_config.enable_batch_sharded_sampling,
        "fuse_allreduce_rms": compilation.pass_config.fuse_allreduce_rms,
        "cudagraph_mode": compilation.cudagraph_mode.name,
        "environment": environment(settings),
    }


def engines_of(path: Path, directory: Path) -> dict[str, dict[str, Any]]:
    """Return the facts of every vLLM engine of a run, by pool."""
    from actors.engines.vllm_engine.sampler import sampler_arguments
    from actors.engines.vllm_engine.scorer import scorer_arguments, scorer_settings
    from actors.rollout.pool import engine_settings
    from rlad.config import load_run_config

    run = load_run_config(path)
    settings = engine_settings(
        run.rollout,
        model_path=str(write_model(run.student.path, directory)),
        dtype=run.student.dtype,
        seed=run.seed,
        transport=run.weights.transport,
    )
    found = {"rollout": facts_of(settings, sampler_arguments(settings))}
    for pool, teacher in run.scoring_pools.items():
        if teacher.engine == "vllm":
            local = teacher.model_copy(update={"path": str(write_model(teacher.path, directory))})
            settings = scorer_settings(local, context_tokens=40_960)
            arguments = scorer_arguments(settings, token_budget=local.token_budget, vocabulary=256)
            found[pool] = facts_of(settings, arguments)
    return found


def token_logprobs() -> dict[str, Any]:
    """Return the log-probabilities of vLLM's kernel, in the interpreter, and those of torch in float64."""
    import triton
    import triton.language
    import vllm.triton_utils

    vllm.triton_utils.triton, vllm.triton_utils.tl = triton, triton.language
    from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

    generator = torch.Generator().manual_seed(0)
    # More entries than a block of the kernel, and not a multiple of it.
    logits = torch.randn(5, 2500, generator=generator) * 8
    logits[4, 2000:] = -torch.inf  # masked ids
    ids = torch.stack([torch.tensor([0, 1023, 1024, 2499, 7]), logits.argmax(dim=1)], dim=1)
    expected = logits.double().log_softmax(dim=1).gather(1, ids)
    return {"kernel": compute_token_logprobs(logits, ids).tolist(), "expected": expected.tolist()}


def main() -> None:
    pretend_h200()
    directory = Path(sys.argv[1])
    engines = {Path(path).name: engines_of(Path(path), directory) for path in sys.argv[2:]}
    print(json.dumps({"engines": engines, "logprobs": token_logprobs()}))


if __name__ == "__main__":
    main()
