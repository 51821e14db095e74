"""Loading of prompts from any prompt source."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rlad.data.order import Mixture
from rlad.data.prompt_assembly import content_digest
from rlad.data.prompt_files import FileReport, PromptReading, read_prompts
from rlad.data.records import PromptRecord, question_key
from rlad.data.row_files import Location
from rlad.errors import DataError

if TYPE_CHECKING:
    from rlad.config.prompts import KnightsKnavesPrompts, PromptMixture, PromptSource, ReasoningGymPrompts


def load_prompts(source: PromptSource) -> list[PromptRecord]:
    """Generate or read the prompts of a prompt source. See `read_source`."""
    return read_source(source).records


def read_source(source: PromptSource) -> PromptReading:
    """Generate or read the prompts of a prompt source, with a report of how they were read.

    Raises:
        DataError: The source has too few distinct prompts, or its file is invalid (the message names file and line).
        ConfigError: reasoning-gym or `datasets` is not installed, or the task is unknown or rejects its settings.
    """
    if source.source == "mixture":
        return _read_mixture(source)
    if source.source == "file" or source.source == "hub":
        return read_prompts(source)
    records = _generated(source)
    report = FileReport(path=source.source, format="generated", compression=None, layout="rlad", rows=len(records))
    return PromptReading(
        records=records,
        locations=[Location(source.source, "prompt", number) for number in range(1, len(records) + 1)],
        question_keys=list(map(question_key, records)),
        files=[report],
    )


def _generated(source: KnightsKnavesPrompts | ReasoningGymPrompts) -> list[PromptRecord]:
    if source.source == "knights_knaves":
        from rlad.data.knights_knaves.prompts import generate_prompts

        return generate_prompts(
            form=source.form, people=source.people, count=source.count, split=source.split, seed=source.seed
        )
    from rlad.data.reasoning_gym import generate_problems

    return generate_problems(
        source.dataset, size=source.size, split=source.split, seed=source.seed, settings=source.settings
    )


def _read_mixture(source: PromptMixture) -> PromptReading:
    """Read the parts of a mixture in order. Ids get the part's name as prefix, and the metadata get it as `part`."""
    mixed = PromptReading()
    parts: list[int] = []
    known: dict[str, str] = {}
    for index, (name, part) in enumerate(source.parts.items()):
        try:
            reading = read_source(part.prompts)
        except DataError as error:
            raise DataError(f"part {name!r} of the mixture: {error}") from error
        mixed.parts[name] = reading
        contents: dict[str, str] = {}
        for record, location, key in zip(reading.records, reading.locations, reading.question_keys, strict=True):
            content = content_digest(record.prompt, record.answer)
            contents[content] = name
            if (other := known.get(content)) is not None:
                if source.duplicates == "refuse":
                    raise DataError(
                        f"{location}: prompt and answer also occur in part {other!r} of the mixture; remove one, or "
                        "set `duplicates: drop`"
                    )
                mixed.duplicates_dropped += source.duplicates == "drop"
                mixed.duplicates_kept += source.duplicates == "keep"
                if source.duplicates == "drop":
                    continue
            mixed.records.append(replace(record, id=f"{name}/{record.id}", metadata={**record.metadata, "part": name}))
            mixed.locations.append(location)
            mixed.question_keys.append(key)
            parts.append(index)
        known = contents | known
    weights = tuple(part.weight for part in source.parts.values() if part.weight is not None)
    mixed.mixture = Mixture(names=tuple(source.parts), weights=weights or None, parts=tuple(parts))
    return mixed
