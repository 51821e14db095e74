"""Prompt records from the prompts of a layout: ids, tasks, answers, messages and metadata."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from rlad.config.prompts import PromptRows
from rlad.data.layouts.base import Columns, RawPrompt
from rlad.data.layouts.messages import chat_or_text
from rlad.data.layouts.values import id_text, is_missing, plain, storable, text_answer
from rlad.data.records import PromptRecord
from rlad.errors import DataError

DEFAULT_TASK = "default"
"""Task of prompts for which neither the row, the source nor the layout has one."""

_TURN_START = re.compile(
    r"\s*(<s>|<bos>|<\|im_start\|>|<\|start_header_id\|>|<\|begin_of_text\|>|<\|begin▁of▁sentence\|>"
    r"|<｜begin▁of▁sentence｜>|<start_of_turn>|\[INST\]|<\|user\|>|<\|system\|>|<｜User｜>)"
)
_INDEX_COLUMN = re.compile(r"__index_level_\d+__|Unnamed: \d+|")
_MEDIA_COLUMN = re.compile(r"(decoded_)?(image|video|audio)s?(_\d+)?|pixel_values", re.IGNORECASE)
_MEDIA_MARK = re.compile(r"\s*<(image|video|audio)(_\d+)?>.*|.*<(image|video|audio)(_\d+)?>\s*", re.DOTALL)


def assemble(raw: RawPrompt, row: Columns, source: PromptRows) -> tuple[PromptRecord, bool]:
    """Return the record of a row, and whether its id was made from its content.

    Raises:
        DataError: A field is missing or invalid.
    """
    if is_missing(raw.prompt):
        raise DataError(
            "missing prompt; add it, name its column with `columns: {prompt: COLUMN}`, or set `invalid_rows: drop`"
        )
    prompt = _prompt(raw, source)
    _require_text_only(prompt, row)
    answer = text_answer(raw.answer)
    has_id = not is_missing(raw.id)
    record = PromptRecord(
        id=id_text(raw.id) if has_id else content_digest(prompt, answer),
        prompt=prompt,
        task=_task(raw, source),
        answer=answer,
        metadata=_metadata(raw, row),
    )
    return record, not has_id


def _require_text_only(prompt: Any, row: Columns) -> None:
    """Refuse prompts of which images, videos or sound are a part, which the student would never get.

    Raises:
        DataError: The row has a column with media, or the prompt has a placeholder for it.
    """
    column = next((name for name, value in row.items() if _MEDIA_COLUMN.fullmatch(str(name)) and value), None)
    parts = prompt if isinstance(prompt, tuple) else (prompt,)
    texts = [part.get("content") if isinstance(part, dict) else part for part in parts]
    mark = next((text for text in texts if isinstance(text, str) and _MEDIA_MARK.fullmatch(text)), None)
    if column is not None or mark is not None:
        where = f"column {column!r}" if column is not None else f"a placeholder in {str(mark)[:40]!r}"
        raise DataError(
            f"the prompt has an image, a video or sound ({where}); only text is supported: use a text-only data set, "
            "or leave out such rows with `invalid_rows: drop`"
        )


def content_digest(*content: Any) -> str:
    """Return sixteen hexadecimal digits of JSON values."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _prompt(raw: RawPrompt, source: PromptRows) -> Any:
    prompt = chat_or_text(raw.prompt)
    if isinstance(prompt, str) and prompt.strip():
        if not _is_verbatim(raw, prompt, source):
            prompt = [{"role": "user", "content": prompt}]
        elif source.system_prompt is not None:
            raise DataError(
                "system_prompt requires messages, but the prompt is text to encode as it stands; set `chat: true` if "
                "the text is a bare question"
            )
        else:
            return prompt + source.prompt_suffix
    if not isinstance(prompt, list):
        return prompt
    if source.system_prompt is not None:
        others = [message for message in prompt if not (isinstance(message, dict) and message.get("role") == "system")]
        prompt = [{"role": "system", "content": source.system_prompt}, *others]
    if source.prompt_suffix and prompt and isinstance(prompt[-1], dict):
        prompt = [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1].get('content')}{source.prompt_suffix}"}]
    return tuple(prompt)


def _is_verbatim(raw: RawPrompt, text: str, source: PromptRows) -> bool:
    if source.chat is not None:
        return not source.chat
    return (raw.verbatim and source.system_prompt is None) or _TURN_START.match(text) is not None


def _task(raw: RawPrompt, source: PromptRows) -> Any:
    candidates = [raw.task, source.task] if raw.task_is_explicit else [source.task, raw.task]
    return next((task for task in candidates if not is_missing(task)), DEFAULT_TASK)


def _metadata(raw: RawPrompt, row: Columns) -> dict[str, Any]:
    others = {
        str(column): plain(value)
        for column, value in row.items()
        if column not in raw.used and not is_missing(value) and not _INDEX_COLUMN.fullmatch(str(column))
    }
    metadata: dict[str, Any] = storable({**others, **plain(raw.metadata)})
    return metadata
