"""Conversion of prompts in data files: chat messages in any common notation, or text."""

from __future__ import annotations

import ast
import re
from typing import Any

from rlad.data.layouts.values import decoded, parsed
from rlad.errors import DataError

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_UNSUPPORTED_ROLES = ("tool", "function", "ipython")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_CHAT_KEYS = ("messages", "conversation", "conversations", "turns")
_CALLS = ("tool_calls", "function_call", "tool_call_id")
_WRITTEN_CHAT = re.compile(r"""\s*(?:array\()?\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")
_NUMPY_WRAPPER = re.compile(r"\s*array\((.*?)(?:,\s*dtype=\w+)?\)\s*", re.DOTALL)


def chat_or_text(value: Any) -> Any:
    """Return a prompt as text or as a list of messages with `role` and `content`.

    JSON text of messages is parsed, also in the notations of Python and numpy, and lists by key are transposed. `from`
    and `value`, roles such as `human`, pairs of role and text, and text parts are converted. Other keys of a message
    are dropped. Values in no known notation are returned unchanged.

    Raises:
        DataError: A message has tool calls, or a part that is not text, or messages in text cannot be parsed.
    """
    if isinstance(value, bytes):
        value = decoded(value)
    if isinstance(value, str):
        found = turns_of(_unwrapped(parsed(value)))
        if not is_chat(found):
            found = _from_notation(value)
        if found is None:
            return value
        value = found
    value = turns_of(_unwrapped(value))
    return [_message(item) for item in value] if is_chat(value) else value


def turns_of(value: Any) -> Any:
    """Return one message, or a mapping of keys to lists (the `datasets` library's sequences), as a list of messages."""
    if not _is_message(value):
        return value
    columns = list(value.values())
    if all(isinstance(column, list) for column in columns) and len({len(column) for column in columns}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return [value]


def is_chat(value: Any) -> bool:
    """Return True for a list of messages."""
    return isinstance(value, list) and bool(value) and all(_is_message(item) for item in value)


def is_conversation(value: Any) -> bool:
    """Return True for a list of turns, of which some may hold another thing than text (Open-Reasoner-Zero's answer)."""
    return (
        isinstance(value, list)
        and all(isinstance(item, dict) for item in value)
        and any(key in item for item in value for key in _ROLE_KEYS)
    )


def _unwrapped(value: Any) -> Any:
    """Return what a mapping with one list of messages, or a list with one prompt, holds; pairs become messages."""
    if isinstance(value, dict) and not _is_message(value):
        chats = [value[key] for key in _CHAT_KEYS if isinstance(value.get(key), list | dict)]
        return chats[0] if len(chats) == 1 else value
    if not isinstance(value, list) or not value:
        return value
    if len(value) == 1 and is_chat(value[0]):
        return value[0]
    if all(isinstance(item, list) and len(item) == 2 and str(item[0]).lower() in _ROLES for item in value):
        return [{"role": role, "content": content} for role, content in value]
    return value


def _from_notation(text: str) -> Any:
    """Return the messages that text in numpy's notation holds; None if it does not look like messages.

    Raises:
        DataError: The text looks like messages and cannot be parsed. The model would get it as it stands.
    """
    if not _WRITTEN_CHAT.match(text):
        return None
    wrapped = _NUMPY_WRAPPER.fullmatch(text)
    try:
        found = ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", (wrapped[1] if wrapped else text).strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        found = None
    if not is_chat(found):
        raise DataError(
            f"the prompt looks like messages and cannot be parsed: {text[:60]!r}; write them with json.dumps, or as a "
            "list"
        )
    return found


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and any(key in value for key in _ROLE_KEYS)
        and any(key in value for key in _CONTENT_KEYS)
    )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    calls = [key for key in _CALLS if message.get(key)]
    if calls:
        raise DataError(f"a message has {calls[0]}, which is not supported; leave out prompts with tool calls")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(role, str):
        role = _ROLES.get(role.strip().lower(), role)
    if role in _UNSUPPORTED_ROLES:
        raise DataError(
            f"a message has role {role!r}, which is not supported; leave out prompts with tool calls, for example "
            "with `invalid_rows: drop`"
        )
    if isinstance(content, bytes):
        content = decoded(content)
    if isinstance(content, list):
        content = "".join(_part_text(part) for part in content)
    return {"role": role, "content": content}


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise DataError(f"a message has a part of type {kind!r}; only text is supported, so leave out such prompts")
