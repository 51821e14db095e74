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


def reading_report(reading: PromptReading, first: int) -> dict[str, Any]:
    """Return a report of a reading with its first prompts, as JSON can hold it."""
    texts = sum(isinstance(record.prompt, str) for record in reading.records)
    return {
        "files": [asdict(file) for file in reading.files],
        "rows": sum(file.rows for file in reading.files),
        "prompts": len(reading.records),
        "tasks": dict(Counter(record.task for record in reading.records).most_common()),
        "chat_prompts": len(reading.records) - texts,
        "text_prompts": texts,
        "made_ids": reading.made_ids,
        "duplicates_kept": reading.duplicates_kept,
        "duplicates_dropped": reading.duplicates_dropped,
        "other_answers": reading.other_answers,
        "invalid_dropped": reading.invalid,
        "errors": reading.errors,
        "first": [
            {
                "location": str(location),
                "id": record.id,
                "task": record.task,
                "answer": record.answer,
                "prompt": record.prompt,
                "metadata": record.metadata,
            }
            for record, location in zip(reading.records[:first], reading.locations[:first], strict=True)
        ],
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
    _line(console, f"{report['prompts']} prompts of {report['rows']} rows", style="bold")
    _print_counts(console, report)
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
        _line(console, f"  {kind}, layout: {file['layout'] or 'none'}, {file['rows']} rows")
        _wrapped(console, f"columns: {', '.join(file['columns']) or 'none'}", indent="  ")
    if len(files) > _SHOWN_FILES:
        _line(console, f"and {len(files) - _SHOWN_FILES} more files")


def _print_counts(console: Console, report: dict[str, Any]) -> None:
    _wrapped(console, "tasks: " + ", ".join(f"{task} ({count})" for task, count in report["tasks"].items()))
    if report["chat_prompts"]:
        _wrapped(console, f"chat template: applied to {report['chat_prompts']} prompts")
    if report["text_prompts"]:
        _wrapped(
            console,
            f"chat template: not applied to {report['text_prompts']} prompts, which are text to encode as it stands "
            "(chat=true applies it)",
        )
    if report["made_ids"]:
        _wrapped(console, f"ids: made from prompt and answer for {report['made_ids']} prompts")
    if report["duplicates_kept"]:
        _wrapped(
            console, f"duplicates: {report['duplicates_kept']} kept (duplicates=drop leaves them out)", style="yellow"
        )
    if report["other_answers"]:
        _wrapped(
            console, f"conflicts: {report['other_answers']} prompts occur before with another answer", style="yellow"
        )
    _wrapped(console, f"left out: {report['duplicates_dropped']} duplicates, {report['invalid_dropped']} invalid rows")
    for error in report["errors"]:
        _wrapped(console, error, indent="    ", style="yellow")


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
    _line(console, f"Tokens of prompt {rendered['id']}: {len(rendered['token_ids'])}", style="bold")
    _wrapped(console, f"text: {_shortened(rendered['text'])!r}")
    pairs = list(zip(rendered["token_ids"], rendered["tokens"], strict=True))
    shown = " ".join(f"{token_id}:{text!r}" for token_id, text in pairs[:_SHOWN_TOKENS])
    more = f" and {len(pairs) - _SHOWN_TOKENS} more" if len(pairs) > _SHOWN_TOKENS else ""
    _wrapped(console, f"tokens: {shown}{more}")
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
