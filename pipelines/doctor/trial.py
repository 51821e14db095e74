"""Trial run of `rlad doctor`: three steps of a small student under itself as teacher, with the real engines.

The teacher is the student, so its scores must equal the learner's before the first update. The learning rate is high
enough that an engine with old weights would show in the next step's gap.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from pipelines.distill import distill
from pipelines.doctor.facts import Gap, Trial
from pipelines.planning.model_shape import shape_of
from pipelines.planning.pool_plans import learner_gib
from pipelines.pretrain import ensure_models
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.config import RunConfig, load_run_config

STUDENT = "starter:kk-smoke/student"
_PUZZLES = {"source": "knights_knaves", "form": "compact", "people": {2: 1}}
_STEPS = 3


def trial_config(
    directory: Path, *, gpus: float, transport: str, address: str | None, overrides: Sequence[str] = ()
) -> RunConfig:
    """Return the configuration of the trial run.

    Args:
        directory: Directory for its file.
        gpus: GPUs of the cluster.
        transport: Transport of weight updates.
        address: Address of the cluster; None for a local one.
        overrides: Settings that override the configuration.

    Raises:
        ConfigError: A setting is invalid, or the transport does not fit the GPUs.
    """
    dtype = "bfloat16" if gpus else "float32"
    share = _shares(gpus, transport)
    settings: dict[str, Any] = {
        "name": "doctor",
        "student": {"path": STUDENT, "dtype": dtype},
        "teacher": {
            "path": STUDENT,
            "dtype": dtype,
            "engine": "vllm" if share["teacher"] or not gpus else "transformers",
            "token_budget": 2048,
            "cpus_per_replica": 0.25,
            "gpus_per_replica": share["teacher"],
            "gpu_memory_fraction": 0.25,
        },
        "objective": {"name": "trrd"},
        "prompts": {**_PUZZLES, "count": 64, "split": "train"},
        "verifiers": {"knights_knaves": {"name": "knights_knaves", "form": "compact"}},
        "verifier_pool": {"cpus_per_worker": 0.25},
        "rollout": {
            "group_size": 4,
            "max_workers": 1,
            "max_prompt_tokens": 64,
            "max_response_tokens": 48,
            "cpus_per_worker": 0.25,
            "gpus_per_worker": share["rollout"],
            "gpu_memory_fraction": 0.25,
        },
        "learner": {
            # A larger one could ruin the student, and groups without a right response are not trained on.
            "optimizer": {"lr": 2.0e-4},
            "micro_batch_tokens": 4096,
            "max_logprob_gap": None,  # reported, not enforced
            "cpus_per_rank": 0.25,
            "gpus_per_rank": share["learner"],
        },
        "training": {"steps": _STEPS, "prompts_per_step": 8},
        "evaluation": {"prompts": {**_PUZZLES, "count": 2, "split": "evaluation", "seed": 1}, "every_steps": 0},
        "weights": {"transport": transport},
        "checkpoints": {"every_steps": _STEPS},
        "cluster": {"address": address, "start_timeout_s": 900},
    }
    path = directory / "doctor.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_run_config(path, overrides)


def _shares(gpus: float, transport: str) -> dict[str, float]:
    """Return the GPUs of each engine: shares of one, or whole ones for NCCL, which needs one for each process."""
    if not gpus:
        return {"rollout": 0.0, "teacher": 0.0, "learner": 0.0}
    if transport == "nccl":
        return {"rollout": 1.0, "teacher": 1.0 if gpus >= 3 else 0.0, "learner": 1.0}
    return {"rollout": 0.3, "teacher": 0.3, "learner": 0.4}


def logit_dtypes(config: RunConfig) -> dict[str, str]:
    """Return the data type in which each vLLM engine of a run computes logits, by pool."""
    pools = {"rollout": (config.student.dtype, config.rollout.engine_args)} | {
        pool: (model.dtype, model.engine_args) for pool, model in config.scoring_pools.items() if model.engine == "vllm"
    }
    return {
        pool: "float32" if dtype == "float32" else (arguments.get("hf_overrides") or {}).get("head_dtype", "float32")
        for pool, (dtype, arguments) in pools.items()
    }


def run_trial(config: RunConfig, directory: Path) -> Trial:
    """Run the trial, and return what it measured, or the error that ended it.

    Args:
        config: Configuration of `trial_config`.
        directory: New run directory, which all nodes must see.
    """
    run, started = RunDirectory(directory), time.monotonic()
    trial = Trial(
        dtype=config.student.dtype,
        transport=config.weights.transport,
        device="GPU" if config.learner.gpus_per_rank else "CPU",
        logits=logit_dtypes(config),
    )
    try:
        ensure_models([config.student.path], Console(quiet=True))
        distill(config, run, resume=False, console=Console(quiet=True))
    except Exception as error:  # noqa: BLE001 - every error of a run is a finding
        return replace(trial, error=f"{type(error).__name__}: {str(error) or 'no message'}")
    shape = shape_of(config.student.path)
    planned_gib = None if shape is None else learner_gib(shape, config.learner)
    trial = replace(trial, total_s=time.monotonic() - started, planned_gib=planned_gib)
    return measured_trial(trial, read_json_lines(run.metrics))


def measured_trial(trial: Trial, steps: Sequence[Mapping[str, Any]]) -> Trial:
    """Return a trial with the measurements of its steps.

    Args:
        trial: The trial without measurements.
        steps: Metrics of each step, at least one.
    """
    gap, log_ratio = "learner/logprob_gap", "objective/log_ratio_teacher_abs_mean"
    memory = [step["learner/peak_memory_gib"] for step in steps if "learner/peak_memory_gib" in step]
    return replace(
        trial,
        teacher_gap=Gap(mean=steps[0][log_ratio]) if log_ratio in steps[0] else None,
        learner_gaps=tuple(
            Gap(mean=step[f"{gap}_mean"], largest=step[f"{gap}_max"]) for step in steps if f"{gap}_mean" in step
        ),
        update_s=tuple(step["time/weights_s"] for step in steps[:-1]),
        learner_gib=max(memory) if memory else None,
    )
