"""Rows of responses and expected answers, judged by a verifier outside of a run."""

from __future__ import annotations

import functools
import json
import queue
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from actors.verifier.killable_process import Judge, Judgement
from actors.verifier.worker import build_verifiers
from rlad.contracts import Outcome
from rlad.data.prompt_files import file_rows
from rlad.errors import ConfigError, DataError
from rlad.verifiers import RewardModelVerifierConfig, VerifierConfig, build_verifier
from rlad.verifiers.response_tags import TaggedVerifierConfig, with_default_tags
from rlad.verifiers.response_text import after_thinking, last_answer_block, last_boxed

RESPONSE_COLUMNS = ("response", "responses", "completion", "completions", "output", "generation", "prediction", "text")
ANSWER_COLUMNS = ("answer", "ground_truth", "gold", "expected", "target", "solution", "reward_model.ground_truth")

_TASK = "verify"
# Relative difference of a number and its rounded decimal.
_ROUNDING = Fraction(1, 1_000_000)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRow:
    """One response with its expected answer.

    Attributes:
        location: File and row, and the number of the response if a row has several.
        response: Text of the response.
        answer: Expected answer.
    """

    location: str
    response: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRow:
    """A row with its verdict.

    Attributes:
        row: The row.
        outcome: Outcome of the verdict.
        reward: Reward.
        elapsed_s: Seconds of the verdict.
        problem: Reason of an error; None for other outcomes.
        doubt: Reason why a person should look at the verdict; None without one.
    """

    row: AnsweredRow
    outcome: Outcome
    reward: float
    elapsed_s: float
    problem: str | None
    doubt: str | None


def read_answered_rows(
    path: str, *, response: str | None = None, answer: str | None = None, limit: int | None = None
) -> list[AnsweredRow]:
    """Read rows of responses and answers from a file, a folder of files or a glob.

    Args:
        path: Files in any format of prompt files.
        response: Column of the response, or of a list of responses; dots lead into nested columns. None looks for
            a name of `RESPONSE_COLUMNS`.
        answer: Column of the expected answer. None looks for a name of `ANSWER_COLUMNS`.
        limit: Maximum number of responses.

    Raises:
        DataError: A file cannot be read, or a row lacks a response or an answer. The message names the row.
    """
    rows: list[AnsweredRow] = []
    for location, row in file_rows(path):
        if not isinstance(row, Mapping):
            raise DataError(f"{location}: expected a row with columns, got {type(row).__name__}; write objects")
        gold = _text(_column(row, answer, ANSWER_COLUMNS, "answer", location))
        found = _column(row, response, RESPONSE_COLUMNS, "response", location)
        texts = list(found) if isinstance(found, list | tuple) else [found]
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise DataError(
                    f"{location}: the response must be text, got {type(text).__name__}; name another column with "
                    "--response"
                )
            where = f"{location}, response {number}" if len(texts) > 1 else str(location)
            rows.append(AnsweredRow(location=where, response=text, answer=gold))
            if limit is not None and len(rows) >= limit:
                return rows
    if not rows:
        raise DataError(f"{path} holds no rows; expected rows with a response and an answer")
    return rows


def judge_rows(
    rows: Sequence[AnsweredRow],
    verifier: VerifierConfig,
    *,
    timeout_s: float,
    processes: int,
    on_row: Callable[[], None] = lambda: None,
) -> list[JudgedRow]:
    """Judge rows in killable processes, as a run does, and return them in order.

    Args:
        rows: Rows to judge.
        verifier: Settings of the verifier.
        timeout_s: Deadline of one response, seconds.
        processes: Number of processes.
        on_row: Called after each row, for a progress bar.

    Raises:
        ConfigError: The verifier cannot be built, or is a reward model.
    """
    if isinstance(verifier, RewardModelVerifierConfig):
        raise ConfigError("a reward model judges tokens in a run and reads no answers; choose another verifier")
    build_verifier(verifier)  # reports a faulty verifier here; a child could only die of it
    judges: queue.SimpleQueue[Judge] = queue.SimpleQueue()
    made = [
        Judge(functools.partial(build_verifiers, {_TASK: verifier}), timeout_s=timeout_s)
        for _ in range(max(1, min(processes, len(rows))))
    ]
    for judge in made:
        judges.put(judge)

    def judged(row: AnsweredRow) -> JudgedRow:
        judge = judges.get()  # unlimited wait: there are as many judges as threads
        try:
            text = row.response
            if isinstance(verifier, TaggedVerifierConfig):
                text = with_default_tags(text, verifier)
            [judgement] = judge.judge(_TASK, [text], row.answer)
        finally:
            judges.put(judge)
        on_row()
        return JudgedRow(
            row=row,
            outcome=judgement.outcome,
            reward=judgement.reward,
            elapsed_s=judgement.elapsed_s,
            problem=judgement.problem,
            doubt=doubt_of(row, judgement, timeout_s=timeout_s),
        )

    try:
        with ThreadPoolExecutor(len(made)) as threads:
            return list(threads.map(judged, rows))
    finally:
        for judge in made:
            judge.close()


def doubt_of(row: AnsweredRow, judgement: Judgement, *, timeout_s: float) -> str | None:
    """Return the reason why a person should look at a verdict; None without one.

    Doubtful are errors, timeouts, responses in which the verifier finds no answer, and verdicts with which a second,
    simple method disagrees: it compares the last box, the last `<answer>` block or the last line with the expected
    answer, as a number if both are plain numbers, and otherwise as text.
    """
    if judgement.outcome is Outcome.ERROR:
        problem = (judgement.problem or "").partition(": ")[2] or judgement.problem
        return f"the verifier cannot judge it: {problem}"
    if judgement.outcome is Outcome.TIMEOUT:
        return f"no verdict within {timeout_s:g} s"
    is_equal = _plainly_equal(row)
    is_correct = judgement.outcome is Outcome.CORRECT
    if is_equal is not None and is_equal != is_correct:
        found = "the answer looks equal" if is_equal else "the numbers look different"
        return f"{judgement.outcome.name.lower()}, but {found}"
    if judgement.outcome is Outcome.UNPARSEABLE:
        return "no answer found" if row.response.strip() else "the response is empty"
    return None


def counts_of(judged: Sequence[JudgedRow]) -> dict[str, int]:
    """Return the number of rows by outcome, every outcome included."""
    counts = Counter(each.outcome for each in judged)
    return {outcome.name.lower(): counts[outcome] for outcome in Outcome}


def report_of(path: str, verifier: VerifierConfig, judged: Sequence[JudgedRow], elapsed_s: float) -> dict[str, Any]:
    """Return counts, shares and all doubtful rows, as JSON can hold them."""
    return {
        "path": path,
        "verifier": verifier.model_dump(mode="json"),
        "responses": len(judged),
        "outcomes": {name: {"count": count, "share": count / len(judged)} for name, count in counts_of(judged).items()},
        "mean_reward": sum(each.reward for each in judged) / len(judged),
        "elapsed_s": elapsed_s,
        "verdict_ms": {
            "mean": 1000 * sum(each.elapsed_s for each in judged) / len(judged),
            "max": 1000 * max(each.elapsed_s for each in judged),
        },
        "doubtful": [
            {
                "location": each.row.location,
                "outcome": each.outcome.name.lower(),
                "reason": each.doubt,
                "answer": each.row.answer,
                "response": each.row.response,
            }
            for each in judged
            if each.doubt is not None
        ],
    }


def _column(row: Mapping[str, Any], name: str | None, known: Sequence[str], what: str, location: object) -> Any:
    """Return the value of a named column, or of the first known one.

    Raises:
        DataError: The row has no such column, or no value in it.
    """
    for each in (name,) if name is not None else known:
        value = _value(row, each)
        if value is not None:
            return value
    columns = ", ".join(sorted(map(str, row))) or "none"
    wanted = f"no value in column {name!r}" if name is not None else f"no column of the {what} ({', '.join(known)})"
    raise DataError(f"{location}: {wanted}; the row has: {columns}. Name the column with --{what} COLUMN")


def _value(row: Mapping[str, Any], path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, str) and value[:1] in "{[":
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plainly_equal(row: AnsweredRow) -> bool | None:
    """Compare the end of a response with the expected answer; None if that shows nothing.

    Differing texts show nothing, because many texts mean the same. Differing plain numbers do.
    """
    text = after_thinking(row.response)
    if text is None or not text.strip():
        return None
    boxed, block = last_boxed(text), last_answer_block(text)
    final = boxed if boxed is not None else block if block is not None else text.strip().splitlines()[-1]
    values = _plain_number(final), _plain_number(row.answer)
    if values[0] is not None and values[1] is not None:
        return abs(values[0] - values[1]) <= _ROUNDING * max(map(abs, (values[0], values[1])))
    return True if _plain_text(final) == _plain_text(row.answer) else None


def _plain_text(text: str) -> str:
    return re.sub(r"[\s$*.]+", "", text).casefold()


def _plain_number(text: str) -> Fraction | None:
    text = _FRACTION.sub(r"\1\2/\3", text.strip().strip("$").strip().rstrip("."))
    if not _NUMBER.fullmatch(text):
        return None
    numerator, _, denominator = text.replace(",", "").partition("/")
    if denominator and not int(denominator):
        return None
    return Fraction(numerator) / int(denominator or 1)


def doubtful_of(judged: Sequence[JudgedRow]) -> Iterator[JudgedRow]:
    """Yield the doubtful rows: first disagreements, then errors, timeouts and missing answers."""
    order = {Outcome.CORRECT: 0, Outcome.WRONG: 0, Outcome.ERROR: 1, Outcome.TIMEOUT: 2, Outcome.UNPARSEABLE: 3}
    yield from sorted((each for each in judged if each.doubt is not None), key=lambda each: order[each.outcome])
