"""LiveCodeBench: public tests as JSON, private tests as JSON or as compressed base64."""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from typing import Any

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.programming.code_answers import answer_of_tests, with_starter_code
from rlad.data.layouts.values import parsed
from rlad.errors import DataError


class LiveCodeBenchLayout:
    """`question_content, public_test_cases, private_test_cases, starter_code, metadata`."""

    name = "LiveCodeBench"

    def matches(self, row: Columns) -> bool:
        return has(row, "question_content", "public_test_cases")

    def read(self, row: Columns) -> RawPrompt:
        cases = _cases(row.get("public_test_cases")) + _cases(row.get("private_test_cases"))
        metadata = parsed(row.get("metadata"))
        metadata = metadata if isinstance(metadata, dict) else {}
        tests: dict[str, Any] = {
            "inputs": [case.get("input") for case in cases],
            "outputs": [case.get("output") for case in cases],
        }
        if any(case.get("testtype") == "functional" for case in cases) and metadata.get("func_name"):
            # One JSON value a line for each argument: APPS has lists of arguments instead.
            tests = {
                "fn_name": metadata["func_name"],
                "inputs": [[_json(line) for line in str(case.get("input")).splitlines()] for case in cases],
                "outputs": [_json(str(case.get("output"))) for case in cases],
            }
        return RawPrompt(
            prompt=with_starter_code(row.get("question_content"), row.get("starter_code")),
            answer=answer_of_tests(tests),
            id=row.get("question_id", row.get("id")),
            task=row.get("task", "code"),
            used=frozenset(
                {"question_id", "id", "task", "question_content", "public_test_cases", "private_test_cases", "metadata"}
            ),
            metadata=metadata,
        )


def _cases(value: Any) -> list[dict[str, Any]]:
    if value is None or value == "":
        return []
    found = parsed(value)
    if isinstance(found, str):
        found = _unpacked(found)
    if not isinstance(found, list) or not all(isinstance(case, dict) for case in found):
        raise DataError(f"test cases must be a list of input and output, got {str(found)[:80]!r}")
    return found


def _unpacked(text: str) -> Any:
    """Return test cases that are base64 of a compressed pickle of JSON text, without running the pickle."""
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
        strings = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]
        return json.loads(strings[0])
    except (binascii.Error, zlib.error, ValueError, IndexError) as error:
        raise DataError(f"the test cases are neither JSON nor compressed JSON: {error}") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
