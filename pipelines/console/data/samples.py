"""Logged responses of a run, divided into tokens with a class of colour for each."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.run.directory import RunDirectory
from rlad.advantages import AdvantageEstimator, group_advantages
from rlad.errors import CorruptFileError
from rlad.samples.log import parts
from rlad.samples.reading import AGREES, DISAGREES, SampleOrder, log_ratios, read_samples, visible

Colouring = Literal["agreement", "advantage"]
COLOURINGS = get_args(Colouring)

# Tokens of a response that the page shows.
_MAX_TOKENS = 4000
_NOT_JUDGED = frozenset({"timeout", "error"})
# Upper bounds of the classes of advantages.
_ADVANTAGE_BOUNDS = (-1.0, -0.05, 0.05, 1.0)
_ADVANTAGE_CLASSES = ("adv-very-low", "adv-low", "adv-zero", "adv-high", "adv-very-high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of a response.

    Attributes:
        text: Text, with control characters as escape sequences.
        style: Class of its colour; empty without one.
        title: Figures of the token; empty without any.
    """

    text: str
    style: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A logged response.

    Attributes:
        step, prompt_id, task, prompt, answer, outcome, worker: Columns of the log.
        number: Position in its group, from 1.
        reward: Reward of the verifier.
        advantage: Advantage over its group; None if other responses of the group were not logged.
        facts: Further facts, each a few words.
        summary: The teacher's agreement; empty without a teacher.
        tokens: Tokens of the response.
        hidden_tokens: Number of tokens after the last one in `tokens`.
    """

    step: int
    prompt_id: str
    task: str
    prompt: str
    answer: str
    outcome: str
    worker: str
    number: int
    reward: float
    advantage: float | None
    facts: Sequence[str]
    summary: str
    tokens: Sequence[Token]
    hidden_tokens: int


def logged_steps(run: RunDirectory) -> list[int]:
    """Return the steps with logged responses, newest first."""
    return sorted(parts(run.samples), reverse=True)


def read_responses(
    run: RunDirectory,
    *,
    order: SampleOrder,
    step: int | None,
    limit: int,
    colouring: Colouring,
    estimator: AdvantageEstimator,
) -> list[Response]:
    """Return the first responses in an order.

    Args:
        run: The run.
        order: The order.
        step: Step to read; None reads all.
        limit: Maximum number of responses.
        colouring: Quantity that the colours show.
        estimator: Estimator of the advantages in the run's configuration.

    Raises:
        RunDirectoryError: The run has no samples, or none of this step.
        CorruptFileError: A part of the log cannot be read.
    """
    rows = read_samples(run.samples, order=order, step=step, limit=limit)
    advantages = _advantages(run, sorted({row["step"] for row in rows}), estimator)
    return [_response(row, advantages.get(_key(row)), colouring) for row in rows]


def _advantages(
    run: RunDirectory, steps: Sequence[int], estimator: AdvantageEstimator
) -> dict[tuple[int, str, int, int], float]:
    """Return the advantage of every response of these steps, computed over the responses of its group."""
    columns = ["step", "group_uid", "attempt", "response_index", "shaped_reward", "outcome"]
    groups: dict[tuple[int, str, int], list[dict[str, Any]]] = defaultdict(list)
    found = parts(run.samples)
    for step in steps:
        try:
            rows = pq.read_table(found[step], columns=columns, page_checksum_verification=True).to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise CorruptFileError(f"the samples of step {step} of {run.path} are damaged: {error}") from error
        for row in rows:
            groups[row["step"], row["group_uid"], row["attempt"]].append(row)
    return {
        _key(row): float(value)
        for group in groups.values()
        for row, value in zip(
            group,
            group_advantages(
                [row["shaped_reward"] for row in group],
                estimator,
                is_judged=[row["outcome"] not in _NOT_JUDGED for row in group],
            ),
            strict=True,
        )
    }


def _key(row: dict[str, Any]) -> tuple[int, str, int, int]:
    return row["step"], row["group_uid"], row["attempt"], row["response_index"]


def _response(row: dict[str, Any], advantage: float | None, colouring: Colouring) -> Response:
    ratios = log_ratios(row)
    tokens = _tokens(row, ratios, advantage, colouring)
    versions = sorted(set(row["policy_versions"]))
    shown_versions = (
        "-".join(str(version) for version in dict.fromkeys((versions[0], versions[-1]))) if versions else ""
    )
    return Response(
        step=row["step"],
        prompt_id=visible(row["prompt_id"]),
        task=visible(row["task"]),
        prompt=visible(row["prompt"].strip()),
        answer=visible(row["answer"]),
        outcome=row["outcome"],
        worker=visible(row["worker"]),
        number=row["response_index"] + 1,
        reward=row["reward"],
        advantage=advantage,
        facts=[
            *([f"shaped reward {row['shaped_reward']:g}"] if row["shaped_reward"] != row["reward"] else []),
            f"{len(row['response_ids'])} tokens",
            *([f"version {shown_versions}"] if versions else []),
            *(["truncated"] if row["finish_reason"] == "length" else []),
            *(["dropped"] if row["is_dropped"] else []),
        ],
        summary=_summary(ratios),
        tokens=tokens[:_MAX_TOKENS],
        hidden_tokens=max(0, len(tokens) - _MAX_TOKENS),
    )


def _tokens(
    row: dict[str, Any], ratios: Sequence[float] | None, advantage: float | None, colouring: Colouring
) -> list[Token]:
    ends = [0, *row["token_ends"]]
    texts = [visible(row["response"][start:end]) for start, end in itertools.pairwise(ends)]
    by_advantage = "" if advantage is None else _ADVANTAGE_CLASSES[bisect.bisect_left(_ADVANTAGE_BOUNDS, advantage)]
    tokens = []
    for index, text in enumerate(texts):
        ratio = math.nan if ratios is None else ratios[index]
        style = by_advantage if colouring == "advantage" else _agreement_class(ratio)
        tokens.append(Token(text=text, style=style, title=_title(row, index, ratio)))
    return tokens


def _agreement_class(ratio: float) -> str:
    if math.isnan(ratio):
        return ""
    return "agrees" if ratio > AGREES else "unsure" if ratio > DISAGREES else "disagrees"


def _title(row: dict[str, Any], index: int, ratio: float) -> str:
    student = f"token {index + 1}: student {row['student_logprobs'][index]:.2f}"
    if math.isnan(ratio):
        return student
    return f"{student}, teacher {row['teacher_logprobs'][index]:.2f}, log-ratio {ratio:+.2f}"


def _summary(ratios: Sequence[float] | None) -> str:
    scored = [ratio for ratio in ratios or () if not math.isnan(ratio)]
    if not scored:
        return ""
    agreeing = sum(ratio > AGREES for ratio in scored) / len(scored)
    disagreeing = sum(ratio <= DISAGREES for ratio in scored) / len(scored)
    mean = sum(scored) / len(scored)
    shares = f"agrees with {agreeing:.0%}, disagrees with {disagreeing:.0%} of the tokens"
    return f"teacher {shares}; mean log-ratio {mean:+.2f}"
