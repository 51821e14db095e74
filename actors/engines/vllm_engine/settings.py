"""Process environment and engine arguments of all vLLM engines, on CPU and GPU.

vLLM reads its environment when it is imported, and the engine's own processes inherit it. An actor therefore calls
`apply_environment` before it imports vllm. This module imports vllm only inside `engine_args`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlad.tokenizers.stopping import NO_STOP_RULES, StopRules

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.metrics.loggers import PrometheusStatLogger

GIB = 1 << 30
MASK = "mask_padding"
"""Name of `MaskExtension.mask_padding`, which vLLM's `collective_rpc` looks up."""

# Tokens of a batch of a sampling engine on GPU. Scoring engines have a token budget of their own.
_BATCHED_TOKENS = 8192
_EXECUTORS = "actors.engines.vllm_engine.executors"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """Engine settings, derived from the configuration of a pool.

    Attributes:
        model_path: Hugging Face model directory.
        dtype: Data type of the weights, `float32` or `bfloat16`.
        max_sequence_tokens: Maximum length of prompt and response together, tokens.
        max_sequences: Maximum number of sequences decoded at once.
        seed: Seed of the engine's random stream, used by requests without a seed.
        on_gpu: Whether the engine's actor has GPUs.
        tensor_parallel: Number of processes (GPUs) that share one copy of the model.
        gpu_memory_fraction: Share of a GPU's memory for weights and KV cache. Ignored on CPU.
        kv_cache_gib: Size of the KV cache, GiB. Ignored on GPU.
        threads: Compute threads per engine process. Ignored on GPU.
        weight_transport: Transport of weight updates, as in `weights.transport`. Ignored by engines without updates.
        arguments: Further arguments of `AsyncEngineArgs`, as in `rollout.engine_args`.
        stop: Ends of responses. Ignored by scoring engines.
        vocabulary_size: Number of token ids. Later entries of the output layer have probability 0: padding, or tokens
            that the student does not have. None means that all entries are tokens.
    """

    model_path: str
    dtype: str
    max_sequence_tokens: int
    max_sequences: int
    seed: int
    on_gpu: bool
    tensor_parallel: int
    gpu_memory_fraction: float
    kv_cache_gib: int
    threads: int
    weight_transport: str = "object_store"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    stop: StopRules = NO_STOP_RULES
    vocabulary_size: int | None = None


def environment(settings: VllmSettings) -> dict[str, str]:
    """Return the environment variables that must be set before vllm and torch are imported."""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # On GPU vLLM's messages tell the size of the KV cache, and the cause of a failed start. They go to Ray's logs.
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "INFO" if settings.on_gpu else "WARNING"),
        # A fork is not safe inside a Ray actor. vLLM would choose spawn too, with a warning.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if settings.on_gpu:
        # FlashInfer compiles its sampler with nvcc at the first use, and the engine dies if that fails. PyTorch and
        # Triton have kernels of their own. No other FlashInfer code is used: see `_gpu_defaults`.
        variables["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    else:
        variables |= {
            "OMP_NUM_THREADS": str(settings.threads),
            # Several engines share the cores. With binding, all of them would use the first cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Compiling the sampler's helpers costs the first batch 14 s, without a gain at these sizes.
            "TORCHDYNAMO_DISABLE": "1",
        }
    if settings.weight_transport == "ipc":
        # Handles of GPU memory are pickled Python objects. They travel from the actor to its own engine process only,
        # through a socket in the file system.
        variables["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return variables


def apply_environment(settings: VllmSettings) -> None:
    """Set `environment` in this process. Call this in the actor before the first import of vllm."""
    os.environ.update(environment(settings))


def engine_args(settings: VllmSettings, **specific: Any) -> AsyncEngineArgs:
    """Return the arguments of an `AsyncLLM`.

    Args:
        settings: Engine settings.
        specific: Arguments of this kind of engine only, such as `logprobs_mode` or `weight_transfer_config`.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    if settings.on_gpu:
        defaults = _gpu_defaults(settings)
    else:
        defaults = {"enforce_eager": True, "kv_cache_memory_bytes": settings.kv_cache_gib * GIB}
    if settings.dtype == "bfloat16":
        # vLLM would round logits to bfloat16. The learner's are float32, so its pi would differ from pi_old.
        defaults["hf_overrides"] = {"head_dtype": "float32"}
    executor = "UniProcessExecutor" if settings.tensor_parallel == 1 else "MultiProcessExecutor"
    ours: dict[str, Any] = {
        "model": settings.model_path,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_sequence_tokens,
        "max_num_seqs": settings.max_sequences,
        "tensor_parallel_size": settings.tensor_parallel,
        # A path, so that vLLM uses it on CPU too. For "uni" vLLM would start another process there, with 10 s of
        # imports. vLLM imports the path when the engine starts, so a wrong path fails at run time only.
        "distributed_executor_backend": f"{_EXECUTORS}.{executor}",
        "trust_remote_code": False,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
        **specific,
    }
    # The configuration refuses arguments that are determined here, except `enforce_eager`.
    return AsyncEngineArgs(**{**_merged(defaults, settings.arguments), **ours})


def ray_metrics() -> list[type[PrometheusStatLogger]]:
    """Return vLLM's logger that passes its metrics to Ray (`ray_vllm_...`), in a process of a Ray cluster."""
    import ray

    if not ray.is_initialized():
        return []
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]


def _gpu_defaults(settings: VllmSettings) -> dict[str, Any]:
    """Return arguments of engines on GPU that the configuration's `engine_args` may override."""
    defaults: dict[str, Any] = {
        "gpu_memory_utilization": settings.gpu_memory_fraction,
        # vLLM's default of 2,048 leaves a GPU idle while prompts are prefilled.
        "max_num_batched_tokens": _BATCHED_TOKENS,
    }
    if settings.tensor_parallel > 1:
        # On Hopper and Blackwell vLLM would fuse all-reduce and RMSNorm with a FlashInfer kernel, compiled with nvcc.
        defaults["compilation_config"] = {"pass_config": {"fuse_allreduce_rms": False}}
    return defaults


def _merged(defaults: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return `defaults` with `arguments` in their place. Mappings are merged key by key."""
    merged = {**defaults, **arguments}
    for name, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(given := arguments.get(name), Mapping):
            merged[name] = _merged(value, given)
    return merged
