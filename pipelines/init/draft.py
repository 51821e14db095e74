"""A first configuration: lengths from the prompts, verifiers from their answers, sizes from the forecast."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pipelines.forecast.devices import find_device
from pipelines.init.division import divided
from pipelines.init.verifier_choice import verifiers_for
from pipelines.planning.model_shape import shape_of
from pipelines.resolution.prompts import encode_reading
from rlad.config import PromptFile, RunConfig
from rlad.config.load import validated
from rlad.data.chat import load_tokenizer
from rlad.data.prompt_files import read_prompts
from rlad.errors import ConfigError, RladError
from rlad.integrity.durable import write_atomically
from rlad.models.locations import resolve_model

_TEMPLATE = Path(__file__).parents[1] / "templates" / "run.yaml.j2"
_MOST_EVALUATED = 500
_MOST_PROMPT_TOKENS = 4096
_MOST_RESPONSE_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Purpose of a configuration.

    Attributes:
        student: Model to train.
        teacher: Model that teaches; None for reinforcement learning without one.
        prompts: Path of the prompts.
        evaluation: Path of evaluation prompts; None keeps a part of `prompts` for the evaluation.
        gpus: Number of GPUs; 0 runs on CPU.
        device: Name of the GPU type.
    """

    student: str
    teacher: str | None
    prompts: str
    evaluation: str | None
    gpus: int
    device: str


def write_configuration(request: Request, out: Path | None, *, force: bool) -> Path:
    """Write a commented configuration that `rlad plan` accepts, and return its path.

    Raises:
        ConfigError: The file exists and `force` is False.
        DataError: The prompts cannot be read.
        PlanError: The models do not fit on the GPUs.
    """
    path = out or Path(f"{_name(request)}.yaml")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists: overwrite it with --force, or choose another --out")
    device = find_device(request.device)
    settings = divided(_settings(request), request.gpus, device)
    validated(RunConfig, settings, where="the drafted configuration")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["yaml"] = _inline
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        settings=settings, request=request, device=device
    )
    if yaml.safe_load(text) != settings:
        raise AssertionError("the template does not write all settings")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return path


def _settings(request: Request) -> dict[str, Any]:
    source = PromptFile(path=request.prompts)
    reading = read_prompts(source)
    held_out = PromptFile(path=request.evaluation) if request.evaluation is not None else None
    evaluated = reading if held_out is None else read_prompts(held_out)
    context, longest = _context(request.student), _longest_prompt(request.student, reading)
    prompt_tokens = min(_MOST_PROMPT_TOKENS, context // 2, max(256, _power_of_two(longest)))
    response_tokens = min(_MOST_RESPONSE_TOKENS if request.gpus else 512, context - prompt_tokens)
    prompts: dict[str, Any] = {"source": "file", "path": request.prompts}
    if held_out is None:
        share = round(min(0.1, _MOST_EVALUATED / len(reading.records)), 4)
        parts = [{**prompts, "split": part, "evaluation_share": share} for part in ("train", "evaluation")]
        prompts, evaluation = parts
    else:
        evaluation = {"source": "file", "path": request.evaluation}
    on_gpu = request.gpus > 0
    group = 8 if on_gpu else 4
    batch = min(32 if on_gpu else 8, max(1, len(reading.records) // 2))
    settings: dict[str, Any] = {
        "name": _name(request),
        "seed": 0,
        "student": {"path": request.student, "dtype": "bfloat16" if on_gpu else "float32"},
        "objective": {"name": "trrd" if request.teacher is not None else "grpo"},
        "prompts": prompts,
        "verifiers": verifiers_for([*reading.records, *evaluated.records]),
        "verifier_pool": {"workers": 1, "processes_per_worker": 4 if on_gpu else 1},
        "rollout": {
            "workers": 1,
            "group_size": group,
            "max_prompt_tokens": prompt_tokens,
            "max_response_tokens": response_tokens,
        },
        "learner": {
            "ranks": 1,
            "zero_stage": 2,
            "optimizer": {"lr": 1.0e-6},
            "micro_batch_tokens": max(16384 if on_gpu else 4096, prompt_tokens + response_tokens),
            "activation_checkpointing": on_gpu,
        },
        "training": {"steps": max(10, min(500, 2 * len(reading.records) // batch)), "prompts_per_step": batch},
        "evaluation": {"prompts": evaluation, "every_steps": 25, "samples": 1, "temperature": 0.6, "top_p": 0.95},
        "checkpoints": {"every_steps": 10},
    }
    if on_gpu:  # loading, compiling and capturing graphs of a large model takes many minutes
        settings["cluster"] = {"start_timeout_s": 1800}
    if request.teacher is not None:
        settings["teacher"] = {"path": request.teacher, "dtype": settings["student"]["dtype"], "engine": "vllm"}
        settings["teacher"]["replicas"] = 1
    return settings


def _longest_prompt(student: str, reading: Any) -> int:
    """Return the tokens of the longest prompt, or an estimate from its characters without the student's tokenizer."""
    try:
        tokenizer = load_tokenizer(resolve_model(student, weights=False))
    except RladError:
        return max(len(str(record.prompt)) for record in reading.records) // 2
    return max(map(len, encode_reading(reading, tokenizer, None).token_ids))


def _context(student: str) -> int:
    shape = shape_of(student)
    return 2 * (_MOST_PROMPT_TOKENS + _MOST_RESPONSE_TOKENS) if shape is None else shape.max_tokens


def _name(request: Request) -> str:
    parts = [re.split(r"[/\\@:]", request.student.rstrip("/"))[-1], Path(request.prompts).name.partition(".")[0]]
    name = re.sub(r"[^a-z0-9.-]+", "-", "-".join(parts).lower()).strip("-.")
    return name[:80] or "run"


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _inline(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
