"""Model card of an exported student: base model, training and accuracy."""

from __future__ import annotations

from huggingface_hub import ModelCard, ModelCardData

from pipelines.run.directory import RunDirectory
from rlad import __version__
from rlad.config import RunConfig
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.integrity.durable import write_atomically
from rlad.integrity.manifest import MANIFEST, add_to_manifest


def write_model_card(run: RunDirectory, *, before: EvaluationSummary, after: EvaluationSummary) -> None:
    """Write `README.md` into the run's export."""
    config = run.read_config()
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rlad", "distillation", config.objective.name],
    )
    evaluation = config.evaluation
    text = f"""---
{metadata.to_yaml()}
---
# {config.name}

`{_student(run, config)}`, trained by rlad {__version__} {training_method(config)}.

Accuracy (mean@{after.overall.samples}) on {after.overall.prompts} held-out prompts at temperature
{evaluation.temperature:g} and top-p {evaluation.top_p:g}:

| {evaluation.group_label} | prompts | before | after | 95% interval |
| --- | --- | --- | --- | --- |
{_rows(before, after)}

All settings are in the run's `config.yaml`.
"""
    write_atomically(run.export / "README.md", str(ModelCard(text)))
    if (run.export / MANIFEST).is_file():
        add_to_manifest(run.export, "README.md")


def training_method(config: RunConfig) -> str:
    """Return the objective, teacher, steps, batch and learning rate of a run, as the end of a sentence."""
    training = config.training
    steps, updates = _count(training.steps, "step"), _count(training.total_updates_per_step, "update")
    return (
        f"with objective {_objective(config)}{_teacher(config)}: {steps} with {_batch(config)} and {updates} per step, "
        f"learning rate {config.learner.optimizer.lr:g}{_adapters(config)}"
    )


def _student(run: RunDirectory, config: RunConfig) -> str:
    recorded = run.read_models().get("student.path")
    return config.student.path if recorded is None else recorded.label


def _objective(config: RunConfig) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in config.objective.shown_settings.items())
    return f"`{config.objective.name}`{f' ({settings})' if settings else ''}"


def _adapters(config: RunConfig) -> str:
    lora = config.learner.lora
    return (
        ""
        if lora is None
        else f", LoRA adapters of rank {lora.rank} and alpha {lora.alpha} (merged into the weights; separate in "
        "`adapter/`)"
    )


def _teacher(config: RunConfig) -> str:
    if config.offline is not None and config.offline.traces is not None:
        return f" on the traces at `{config.offline.traces}`"
    if config.teacher is None:
        return ""
    return (
        f" on traces of the teacher `{config.teacher.label}`"
        if config.offline is not None
        else f" and teacher `{config.teacher.label}`"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _batch(config: RunConfig) -> str:
    size = config.training.prompts_per_step
    return (
        f"{size} traces" if config.offline is not None else f"{size} prompts of {config.rollout.group_size} responses"
    )


def _rows(before: EvaluationSummary, after: EvaluationSummary) -> str:
    pairs = [(name, before.groups[name], after.groups[name]) for name in after.groups] + [
        ("all", before.overall, after.overall)
    ]
    return "\n".join(
        f"| {name} | {new.prompts} | {old.mean:.1%} | {new.mean:.1%} | {new.low:.1%} to {new.high:.1%} |"
        for name, old, new in pairs
    )
