"""How every vLLM engine of the project is started, on CPU and on GPU: the process environment and the engine arguments.

vLLM reads its environment while it is imported, and its engine runs in processes of its own that inherit it. So an actor calls
`apply_environment` first and imports vllm afterwards; this module imports it only inside `engine_args`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """What an engine takes from its pool's configuration.

    Attributes:
        model_path: Hugging Face model directory.
        dtype: precision of the weights, `float32` or `bfloat16`.
        max_sequence_tokens: longest sequence, prompt and response together.
        max_sequences: sequences the engine decodes at once.
        seed: of the engine's own random stream, used by requests that carry no seed.
        on_gpu: whether the engine's actor holds GPUs.
        tensor_parallel: processes (GPUs) that share one copy of the model.
        gpu_memory_fraction: share of a GPU's memory for weights and KV cache; ignored on CPU.
        kv_cache_gib: KV cache in GiB; ignored on GPU.
        threads: compute threads of each engine process; ignored on GPU.
        weight_transport: how new weights come, as in `weights.transport` of a run; an engine that never gets any has no use for it.
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


def environment(settings: VllmSettings) -> dict[str, str]:
    """The variables an engine's processes must see before they import vllm and torch."""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Inside a Ray actor a fork is not safe; vLLM would choose the same, with a warning.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if not settings.on_gpu:
        variables |= {
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share the cores; binding would put all of them on the first ones
            "TORCHDYNAMO_DISABLE": "1",  # the sampler's compiled helpers cost the first batch 14 s and win nothing at these sizes
        }
    if settings.weight_transport == "ipc":
        # Handles of GPU memory are Python objects on their way from the actor to its own engine process, over a socket in the file system.
        variables["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return variables


def apply_environment(settings: VllmSettings) -> None:
    """Set `environment` in this process. Call it in the actor, before the first import of vllm."""
    os.environ.update(environment(settings))


def engine_args(settings: VllmSettings, **specific: Any) -> AsyncEngineArgs:
    """Arguments of an `AsyncLLM`.

    Args:
        settings: from the pool's configuration.
        specific: what only this kind of engine wants (`logprobs_mode`, `weight_transfer_config`, ...).
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    if settings.on_gpu:
        placement: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_fraction}
    else:
        placement = {"enforce_eager": True, "kv_cache_memory_bytes": settings.kv_cache_gib * GIB}
    return AsyncEngineArgs(
        model=settings.model_path,
        dtype=settings.dtype,
        seed=settings.seed,
        max_model_len=settings.max_sequence_tokens,
        max_num_seqs=settings.max_sequences,
        tensor_parallel_size=settings.tensor_parallel,
        # Named by path, so that vLLM takes it on CPU too, where for "uni" it would start one process more (10 s of imports).
        distributed_executor_backend=f"actors.engines.vllm_engine.executors.{'UniProcess' if settings.tensor_parallel == 1 else 'MultiProcess'}Executor",
        trust_remote_code=False,
        disable_log_stats=True,
        enable_log_requests=False,
        use_tqdm_on_load=False,
        **placement,
        **specific,
    )
