"""Choice of a verifier for each task, from the answers of its prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from rlad.data.records import PromptRecord

# Answers of a task that are looked at.
_LOOKED_AT = 50
_CHOICE = re.compile(r"\(?[A-J]\)?\.?")
_KNIGHTS_KNAVES = re.compile(r"[TF]+|.*\b(knight|knave)\b.*", re.IGNORECASE | re.DOTALL)
_TEST_KEYS = {"inputs", "outputs", "fn_name", "test_list", "tests", "test", "assert_case", "functional", "input"}


def verifiers_for(records: Iterable[PromptRecord]) -> dict[str, dict[str, Any]]:
    """Return the settings of a verifier for each task of the prompts."""
    answers: dict[str, list[str]] = {}
    for record in records:
        found = answers.setdefault(record.task, [])
        if len(found) < _LOOKED_AT:
            found.append(record.answer)
    return {task: {"name": _verifier_name(task, found)} for task, found in sorted(answers.items())}


def _verifier_name(task: str, answers: list[str]) -> str:
    parsed = [_parsed(answer) for answer in answers]
    if all(isinstance(value, dict) and {"numbers", "target"} <= value.keys() for value in parsed):
        return "countdown"
    if all(isinstance(value, list) or (isinstance(value, dict) and _TEST_KEYS & value.keys()) for value in parsed):
        return "code_tests"
    if "knave" in task or all(_KNIGHTS_KNAVES.fullmatch(answer) for answer in answers):
        return "knights_knaves"
    if all(_CHOICE.fullmatch(answer.strip()) for answer in answers):
        return "multiple_choice"
    return "math_answer"


def _parsed(answer: str) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return None
