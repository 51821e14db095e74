"""Check of `engine_args`: unknown names, and names that rlad sets itself."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator

from rlad.config.engine_arguments.names import ENGINE_ARGUMENTS

_MODEL = "the model of this section is used"
_SECRET = "configurations hold no secrets; set the environment variable HF_TOKEN"
_WEIGHTS = "weight updates depend on it"
_PROCESSES = "rlad places one engine on the GPUs of one worker; use `tensor_parallel` and more workers"

RESERVED: Mapping[str, str] = MappingProxyType(
    {
        "model": _MODEL,
        "tokenizer": _MODEL,
        "hf_config_path": _MODEL,
        "model_weights": _MODEL,
        "revision": _MODEL,
        "code_revision": _MODEL,
        "tokenizer_revision": _MODEL,
        "skip_tokenizer_init": "stop strings need the tokenizer",
        "hf_token": _SECRET,
        "trust_remote_code": "rlad runs no code of model directories",
        "dtype": "it is the setting `dtype` of the model",
        "seed": "it derives from the setting `seed`",
        "max_model_len": "it follows from the maximum lengths of prompts and responses, or from the model",
        "tensor_parallel_size": "it is the setting `tensor_parallel`",
        "gpu_memory_utilization": "it is the setting `gpu_memory_fraction`",
        "kv_cache_memory_bytes": "it is the setting `kv_cache_gib` on CPU and `gpu_memory_fraction` on GPUs",
        "distributed_executor_backend": "rlad's executor ends the engine together with its worker",
        "worker_cls": _WEIGHTS,
        "worker_extension_cls": _WEIGHTS,
        "weight_transfer_config": _WEIGHTS,
        "enable_prefix_caching": "the cache depends on the policy version",
        "logprobs_mode": "the learner needs the log-probabilities of the sampling distribution",
        "enable_batch_sharded_sampling": "ids that the student does not have would be sampled",
        "disable_log_stats": "rlad measures the engines itself",
        "enable_log_requests": "the log would hold every prompt",
        "use_tqdm_on_load": "rlad shows the progress itself",
        "runner": "the engine generates text",
        "convert": "the engine generates text",
        "tokens_only": "stop strings need the tokenizer",
        "pipeline_parallel_size": _PROCESSES,
        "nnodes": _PROCESSES,
        "node_rank": _PROCESSES,
        "master_addr": _PROCESSES,
        "master_port": _PROCESSES,
        "device_ids": _PROCESSES,
    }
)
"""Arguments that rlad sets itself or does not allow, with the reason."""

_RESERVED_IN_ROLLOUT = {"max_num_seqs": "it is the setting `max_sequences`"}
_RESERVED_IN_TEACHERS = {
    "max_num_seqs": "it follows from `token_budget`",
    "max_num_batched_tokens": "it is the setting `token_budget`",
    "max_logprobs": "it is the size of the teacher's vocabulary",
    "pooler_config": "it follows from the setting `send`",
}


def require_engine_arguments(arguments: Mapping[str, Any], *, scores: bool) -> None:
    """Refuse unknown names with the nearest known one, and names that rlad sets itself with the reason.

    Args:
        arguments: Arguments of `AsyncEngineArgs`.
        scores: Whether the engine scores, as a teacher, instead of sampling.

    Raises:
        ValueError: With one sentence for each wrong name.
    """
    reserved = {**RESERVED, **(_RESERVED_IN_TEACHERS if scores else _RESERVED_IN_ROLLOUT)}
    problems = []
    for name in arguments:
        reason = _reserved_because(name, reserved)
        if reason is not None:
            problems.append(f"engine_args.{name} cannot be set, because {reason}; remove it")
        elif name not in ENGINE_ARGUMENTS:
            nearest = difflib.get_close_matches(name, sorted(ENGINE_ARGUMENTS - reserved.keys()), n=1, cutoff=0.5)
            hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
            problems.append(f"engine_args.{name} is no argument of vLLM's AsyncEngineArgs{hint}")
    if problems:
        raise ValueError("; ".join(problems))


def _reserved_because(name: str, reserved: Mapping[str, str]) -> str | None:
    if name.startswith("data_parallel_"):
        return _PROCESSES
    return reserved.get(name)


def _as_names(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with underscores in their names: vLLM's command line writes hyphens."""
    return {name.replace("-", "_"): value for name, value in arguments.items()}


EngineArguments = Annotated[dict[str, Any], AfterValidator(_as_names)]
