"""Report of `rlad prompts`: how prompt files were read, as JSON and for terminals of any width."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from pipelines.resolution.prompts import EncodedPrompts
from rlad.data.prompt_files import PromptReading

_SHOWN_FILES = 5
_SHOWN_CHARACTERS = 400
_SHOWN_TOKENS = 48
_SHOWN_OVERLAPS = 3


def reading_report(reading: PromptReading, first: int) -> dict[str, Any]:
    """Return a report of a reading with its first prompts, as JSON can hold it."""
    texts = sum(isinstance(record.prompt, str) for record in reading.records)
    single = [reading, *reading.parts.values()]
    files = [file for part in single for file in part.files]
    report = {
        "files": [asdict(file) for file in files],
        "rows": sum(file.rows for file in files),
        "prompts": len(reading.records),
        "tasks": dict(Counter(record.task for record in reading.records).most_common()),
        "chat_prompts": len(reading.records) - texts,
        "text_prompts": texts,
        "made_ids": sum(part.made_ids for part in single),
        "duplicates_kept": sum(part.duplicates_kept for part in single),
        "duplicates_dropped": sum(part.duplicates_dropped for part in single),
        "other_answers": sum(part.other_answers for part in single),
        "invalid_dropped": sum(part.invalid for part in single),
        "errors": [error for part in single for error in part.errors],
        "first": [_shown(reading, index) for index in _first_of_each(reading, first)],
    }
    if (mixture := reading.mixture) is not None:
        weights = mixture.weights or mixture.sizes
        report["parts"] = {
            name: {"weight": weight / sum(weights), "prompts": size, "entries": entries}
            for name, weight, size, entries in zip(mixture.names, weights, mixture.sizes, mixture.entries, strict=True)
        }
    return report


def _first_of_each(reading: PromptReading, first: int) -> list[int]:
    """Return the indices of the first prompts, of each part of a mixture."""
    if reading.mixture is None:
        return list(range(len(reading.records)))[:first]
    parts = reading.mixture.parts
    return [
        index for part in range(len(reading.parts)) for index in [i for i, at in enumerate(parts) if at == part][:first]
    ]


def _shown(reading: PromptReading, index: int) -> dict[str, Any]:
    record = reading.records[index]
    return {
        "location": str(reading.locations[index]),
        "id": record.id,
        "task": record.task,
        "answer": record.answer,
        "prompt": record.prompt,
        "metadata": record.metadata,
    }


def overlap_report(reading: PromptReading, others: PromptReading, place: str) -> dict[str, Any]:
    """Return the number and first locations of prompts whose question is also asked in another reading."""
    asked = dict(zip(reversed(others.question_keys), reversed(others.locations), strict=True))
    shared = [index for index, key in enumerate(reading.question_keys) if key in asked]
    return {
        "overlap": {
            "with": place,
            "prompts": len(shared),
            "first": [
                [str(reading.locations[index]), str(asked[reading.question_keys[index]])]
                for index in shared[:_SHOWN_OVERLAPS]
            ],
        }
    }


def token_report(prompts: EncodedPrompts, tokenizer: Any, max_tokens: int | None) -> dict[str, Any]:
    """Return the lengths of all prompts and the tokens of the first one."""
    lengths = sorted(map(len, prompts.token_ids))
    ids = prompts.token_ids[0].tolist()
    return {
        "tokens": {
            "shortest": lengths[0],
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
            "limit": max_tokens,
            "too_long": 0 if max_tokens is None else sum(length > max_tokens for length in lengths),
        },
        "rendered": {
            "id": prompts.records[0].id,
            "text": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
            "token_ids": ids,
            "tokens": [tokenizer.decode([token]) for token in ids],
        },
    }


def print_report(console: Console, report: dict[str, Any]) -> None:
    """Print the files, the counts, what was left out, and the first prompts of a report."""
    _print_files(console, report["files"])
    _line(console, "")
    _line(console, f"{_count(report['prompts'], 'prompt')} of {_count(report['rows'], 'row')}", style="bold")
    _print_counts(console, report)
    if "overlap" in report:
        _print_overlap(console, report["overlap"])
    for number, prompt in enumerate(report["first"], start=1):
        _line(console, "")
        _print_prompt(console, number, prompt)
    if "rendered" in report:
        _line(console, "")
        _print_rendered(console, report["rendered"], report["tokens"])


def _print_files(console: Console, files: list[dict[str, Any]]) -> None:
    for file in files[:_SHOWN_FILES]:
        _line(console, file["path"], style="bold")
        kind = file["format"] + (f" ({file['compression']})" if file["compression"] else "")
        _line(console, f"  {kind}, layout: {file['layout'] or 'none'}, {_count(file['rows'], 'row')}")
        if file["version"]:
            _line(console, f"  {'commit' if file['format'] == 'hub' else 'SHA-256'}: {file['version']}")
        if file["columns"]:
            others = [column for column in file["columns"] if column not in file["used"]]
            _wrapped(console, f"columns used: {', '.join(file['used']) or 'none'}")
            if others:
                _wrapped(console, f"columns kept as metadata: {', '.join(others)}")
    if len(files) > _SHOWN_FILES:
        _line(console, f"and {len(files) - _SHOWN_FILES} more files")


def _print_counts(console: Console, report: dict[str, Any]) -> None:
    for name, part in report.get("parts", {}).items():
        share = f"{part['weight']:.1%} of the training"
        _wrapped(console, f"part {name}: {_count(part['prompts'], 'prompt')}, {share}, {part['entries']} an epoch")
    tasks = ", ".join(f"{task} ({count})" for task, count in report["tasks"].items())
    _wrapped(console, f"tasks: {tasks}; each needs an entry in `verifiers`")
    if report["chat_prompts"]:
        _wrapped(console, f"chat template: applied to {_count(report['chat_prompts'], 'prompt')}")
    if report["text_prompts"]:
        is_set = any(file["format"] != "generated" for file in report["files"])
        _wrapped(
            console,
            f"chat template: not applied to {_count(report['text_prompts'], 'prompt')} of plain text, which the model "
            f"gets as it stands{' (chat=true applies the template)' if is_set else ''}",
        )
    if report["made_ids"]:
        _wrapped(console, f"ids: made from prompt and answer for {_count(report['made_ids'], 'prompt')}")
    if report["duplicates_kept"]:
        _wrapped(
            console, f"duplicates: {report['duplicates_kept']} kept (duplicates=drop leaves them out)", style="yellow"
        )
    if report["other_answers"]:
        _wrapped(
            console,
            f"conflicts: {_count(report['other_answers'], 'prompt')} asked before with another answer",
            style="yellow",
        )
    left_out = [
        _count(report[key], noun)
        for key, noun in (("duplicates_dropped", "duplicate"), ("invalid_dropped", "invalid row"))
        if report[key]
    ]
    _wrapped(console, f"left out: {', '.join(left_out) or 'nothing'}", style="yellow" if left_out else "")
    for error in report["errors"]:
        _wrapped(console, error, indent="    ", style="yellow")


def _print_overlap(console: Console, overlap: dict[str, Any]) -> None:
    found = _count(overlap["prompts"], "prompt")
    _wrapped(console, f"also in {overlap['with']}: {found}", style="yellow" if overlap["prompts"] else "")
    for here, there in overlap["first"]:
        _wrapped(console, f"same question: {here} and {there}", indent="    ", style="yellow")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_prompt(console: Console, number: int, prompt: dict[str, Any]) -> None:
    _wrapped(console, f"{number}. {prompt['id']}, task {prompt['task']}", indent="", style="bold")
    messages = prompt["prompt"]
    if isinstance(messages, str):
        _wrapped(console, f"text: {_shortened(messages)}")
    else:
        for message in messages:
            _wrapped(console, f"{message['role']}: {_shortened(message['content'])}")
    _wrapped(console, f"answer: {_shortened(prompt['answer'])}")
    if prompt["metadata"]:
        _wrapped(console, f"metadata: {_shortened(json.dumps(prompt['metadata'], ensure_ascii=False))}")


def _print_rendered(console: Console, rendered: dict[str, Any], tokens: dict[str, Any]) -> None:
    _line(console, f"Prompt {rendered['id']} as the model gets it", style="bold")
    _wrapped(console, f"text: {_shortened(rendered['text'])!r}")
    pairs = list(zip(rendered["token_ids"], rendered["tokens"], strict=True))
    shown = " ".join(f"{token_id}:{text!r}" for token_id, text in pairs[:_SHOWN_TOKENS])
    more = f" and {len(pairs) - _SHOWN_TOKENS} more" if len(pairs) > _SHOWN_TOKENS else ""
    _wrapped(console, f"{_count(len(pairs), 'token')}, id:text: {shown}{more}")
    _wrapped(
        console,
        f"length of all prompts: shortest {tokens['shortest']}, median {tokens['median']}, longest {tokens['longest']} "
        "tokens",
    )
    if tokens["limit"] is not None:
        _wrapped(console, f"longer than {tokens['limit']} tokens: {tokens['too_long']}; a run leaves them out")


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"


def _wrapped(console: Console, text: str, *, indent: str = "  ", style: str = "") -> None:
    """Print text with its own line breaks, wrapped at the width of the console and 80 columns at most."""
    for number, paragraph in enumerate(text.splitlines()):
        for line in textwrap.wrap(
            paragraph,
            min(console.width, 80),
            initial_indent=indent if number == 0 else f"{indent}  ",
            subsequent_indent=f"{indent}  ",
            break_on_hyphens=False,
        ):
            _line(console, line, style=style)


def _line(console: Console, text: str, *, style: str = "") -> None:
    console.print(Text("".join(mark if mark.isprintable() else " " for mark in text), style=style), soft_wrap=True)
