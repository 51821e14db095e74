"""Model card of a registered version, from the registry's records: lineage, data, method and accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from huggingface_hub import ModelCardData

from pipelines.run.model_card import training_method
from rlad.config import RunConfig
from rlad.config.load import validated
from rlad.config.prompts import HubPrompts, PromptFile, PromptMixture, PromptSource
from rlad.credentials import redact
from rlad.errors import ConfigError, RegistryError
from rlad.evaluation.accuracy import Accuracy
from rlad.registry.governance import ModelGovernance
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import ModelVersion, parse_reference

_MAX_ANCESTORS = 50
_SHOWN_SHA256 = 12
# An absolute path in backticks, with its last part.
_DIRECTORY = re.compile(r"`[/~][^`]*/([^`/]+)`")


def model_card(registry: ModelRegistry, version: ModelVersion) -> str:
    """Return the model card of a version, as Markdown with the metadata of the hub.

    The card has no directories of machines, no names of persons, and none of the alias moves. A configuration of
    another version of rlad that cannot be read is left out.
    """
    config = _config(version)
    notes = ModelGovernance(registry=registry, name=version.name).notes().get(version.version)
    tags = [f"`{key}={value}`" for key, value in notes.tags.items()] if notes is not None else []
    paragraphs = [notes.description if notes is not None else "", f"Tags: {', '.join(tags)}." if tags else ""]
    about = "".join(f"{each}\n\n" for each in paragraphs if each)
    text = f"""---
{_metadata(config)}
---
# {version.reference}

{about}## Method

{_method(version, config)}

## Data

{_data(version, config)}

## Accuracy

{_accuracy(version, config)}

## Lineage

{_lineage(registry, version)}

## Weights

{_weights(version)}
"""
    return redact(text)


def _config(version: ModelVersion) -> RunConfig | None:
    if version.config is None:
        return None
    try:
        return validated(RunConfig, dict(version.config), where=f"configuration of {version.reference}")
    except ConfigError:
        return None


def _metadata(config: RunConfig | None) -> str:
    objective = [] if config is None else [config.objective.name]
    datasets = sorted({source.dataset for source in _sources(config) if isinstance(source, HubPrompts)})
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rlad", "distillation", *objective],
        datasets=datasets or None,
    )
    return str(data.to_yaml())


def _method(version: ModelVersion, config: RunConfig | None) -> str:
    lineage = version.lineage
    base = _public(lineage.parent or lineage.base_model)
    if config is None:
        return f"`{base}`, trained by rlad {lineage.rlad_version} for {lineage.steps} steps."
    method = _DIRECTORY.sub(r"`\1`", training_method(config))
    return f"`{base}`, trained by rlad {lineage.rlad_version} {method}."


def _data(version: ModelVersion, config: RunConfig | None) -> str:
    lineage = version.lineage
    lines = [f"- Training: {lineage.num_prompts} prompts (fingerprint `{lineage.prompts_fingerprint}`)"]
    if config is not None:
        lines[0] += f": {_source(config.prompts)}"
        lines.append(
            f"- Evaluation: {version.evaluation.overall.prompts} prompts: {_source(config.evaluation.prompts)}"
        )
        verifiers = ", ".join(f"`{task}` by `{verifier.name}`" for task, verifier in config.verifiers.items())
        lines.append(f"- Verifiers: {verifiers}")
    return "\n".join(lines)


def _accuracy(version: ModelVersion, config: RunConfig | None) -> str:
    summary = version.evaluation
    overall = summary.overall
    how = ""
    if config is not None:
        evaluation = config.evaluation
        how = f", sampled at temperature {evaluation.temperature:g} and top-p {evaluation.top_p:g}"
    head = f"mean@{overall.samples} on {overall.prompts} prompts{how}, with 95% intervals over prompts:"
    rows = "\n".join(_row(name, row) for name, row in [*summary.groups.items(), ("all", overall)])
    label = "group" if config is None else config.evaluation.group_label
    return f"""{head}

| {label} | prompts | mean | 95% interval | pass@{overall.samples} | tokens | truncated |
| --- | --- | --- | --- | --- | --- | --- |
{rows}"""


def _row(name: str, row: Accuracy) -> str:
    return (
        f"| {name} | {row.prompts} | {row.mean:.1%} | {row.low:.1%} to {row.high:.1%} | {row.pass_at_k:.1%} | "
        f"{row.response_tokens:.0f} | {row.truncated:.1%} |"
    )


def _lineage(registry: ModelRegistry, version: ModelVersion) -> str:
    rows = "\n".join(
        f"| {each.reference} | {_public(each.lineage.parent or each.lineage.base_model)} | {each.lineage.run_id} | "
        f"{each.lineage.steps} | {each.evaluation.overall.mean:.1%} of {each.evaluation.overall.prompts} | "
        f"{each.created_at[:10]} |"
        for each in [version, *_ancestors(registry, version)]
    )
    lineage = version.lineage
    teachers = [f"- Teacher `{name}`: `{_public(label)}`" for name, label in lineage.teachers.items()]
    commit = f", commit `{lineage.git_commit}`" if lineage.git_commit else ""
    cost = [f"- Cost of the run: {lineage.cost}"] if lineage.cost is not None else []
    facts = [
        *teachers,
        f"- Code: rlad {lineage.rlad_version}{commit}",
        f"- Configuration: SHA-256 `{lineage.config_sha256[:_SHOWN_SHA256]}`",
        *cost,
    ]
    head = "| version | started from | run | steps | accuracy | added |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([head, rows, "", *facts])


def _ancestors(registry: ModelRegistry, version: ModelVersion) -> Iterator[ModelVersion]:
    """Yield the versions that a version comes from, newest first, also retired ones."""
    for _ in range(_MAX_ANCESTORS):
        if version.lineage.parent is None:
            return
        name, number = parse_reference(version.lineage.parent)
        if number is None or not number.isdecimal():
            return
        try:
            version = registry.manifest(name, int(number))
        except RegistryError:  # registered elsewhere
            return
        yield version


def _weights(version: ModelVersion) -> str:
    files = [file for file in version.files if PurePosixPath(file.path).suffix == ".safetensors"]
    rows = "\n".join(f"| `{file.path}` | {file.bytes} | `{file.sha256}` |" for file in files)
    return f"| file | bytes | SHA-256 |\n| --- | --- | --- |\n{rows}"


def _sources(config: RunConfig | None) -> list[PromptSource]:
    if config is None:
        return []
    prompts = config.prompts
    return [part.prompts for part in prompts.parts.values()] if isinstance(prompts, PromptMixture) else [prompts]


def _source(prompts: PromptSource) -> str:
    if isinstance(prompts, PromptMixture):
        return "; ".join(f"{name}: {_source(part.prompts)}" for name, part in prompts.parts.items())
    if isinstance(prompts, PromptFile):
        return f"`{_public(prompts.path)}`"
    if isinstance(prompts, HubPrompts):
        return prompts.label
    described = prompts.model_dump(mode="json", exclude_defaults=True, exclude={"source"})
    settings = ", ".join(f"{key} {value}" for key, value in described.items())
    return f"`{prompts.source}` ({settings})"


def _public(reference: str) -> str:
    """Return a reference without the directory of a machine: only the last part of an absolute path."""
    return reference.rpartition("/")[2] if reference.startswith(("/", "~")) else reference
