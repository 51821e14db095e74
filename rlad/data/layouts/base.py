"""Protocol of prompt layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Columns = Mapping[str, Any]
"""One row: values by column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPrompt:
    """Prompt as a layout finds it in a row, before conversion and defaults.

    Attributes:
        prompt: Text, chat messages in any common notation, or their JSON text.
        answer: Expected answer; a number, list or mapping becomes text. None if the row has none.
        id: Identifier in the row; None makes one from the content.
        task: Task of the row; None if the row has none.
        task_is_explicit: Whether the row's task takes precedence over the prompt source's `task`.
        verbatim: Whether text is encoded as it stands. Otherwise it becomes a user message.
        used: Columns that are not repeated in the metadata.
        metadata: Metadata of the row. Columns that are not used are added to it.
    """

    prompt: Any
    answer: Any
    id: Any = None
    task: Any = None
    task_is_explicit: bool = False
    verbatim: bool = False
    used: frozenset[str] = frozenset()
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Layout(Protocol):
    """Layout of a prompt data set. Implementations have no state and live in one file each."""

    @property
    def name(self) -> str:
        """Name of the layout, as `rlad prompts` prints it."""
        ...

    def matches(self, row: Columns) -> bool:
        """Return True if the first row of a file is in this layout."""
        ...

    def read(self, row: Columns) -> RawPrompt:
        """Return the prompt in a row.

        Raises:
            DataError: A value is missing or has another form. The message needs no location.
        """
        ...


def has(row: Columns, *names: str) -> bool:
    """Return True if the row has all of these columns, even without a value."""
    return all(name in row for name in names)
