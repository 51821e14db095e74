"""prime-rl and verifiers environments: `prompt` or `question` with `answer` and `info`."""

from __future__ import annotations

from rlad.data.layouts.base import Columns, RawPrompt, has
from rlad.data.layouts.values import is_missing, parsed


class VerifiersLayout:
    """`example_id, prompt, answer, task, info`, or SYNTHETIC-1's `prompt, verification_info`.

    An empty answer is replaced by `info`, where environments keep what their rubric needs.
    """

    name = "verifiers"

    def matches(self, row: Columns) -> bool:
        has_question = has(row, "prompt") or has(row, "question")
        environment = has(row, "answer") and (has(row, "example_id") or has(row, "info"))
        return has_question and (environment or has(row, "verification_info"))

    def read(self, row: Columns) -> RawPrompt:
        question = "prompt" if "prompt" in row else "question"
        info = parsed(row.get("info", row.get("verification_info")))
        answer = row.get("answer")
        if is_missing(answer) or answer == "":
            is_simple = isinstance(info, dict) and info.get("ground_truth") is not None
            answer = info["ground_truth"] if is_simple else info or None
        task = row.get("task", row.get("task_type"))
        return RawPrompt(
            prompt=row.get(question),
            answer=answer,
            id=row.get("id", row.get("problem_id")),
            task=None if is_missing(task) or task == "" else task,
            task_is_explicit="task" in row,
            used=frozenset({"id", "problem_id", "task", "task_type", question, "answer"}),
        )
