"""Logged responses in the terminal, with the teacher's agreement by token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from rlad.samples.reading import AGREES, DISAGREES, log_ratios, visible

_QUOTES = "«»"
_LISTED = 3


def print_samples(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print responses, each below its prompt.

    Args:
        console: Where to print; long lines wrap at its width.
        rows: Rows of a sample log.
    """
    shown: str | None = None
    for row in rows:
        if row["group_uid"] != shown:
            shown = row["group_uid"]
            console.print(Rule(f"step {row['step']}  prompt {visible(row['prompt_id'])}", align="left", style="dim"))
            console.print(Text.assemble(("prompt  ", "bold"), visible(row["prompt"].strip())))
            console.print(Text.assemble(("answer  ", "bold"), visible(row["answer"])))
        _print_response(console, row)
    if not rows:
        console.print("no response has the teacher's scores", highlight=False)
    elif any(row["teacher_logprobs"] is not None for row in rows):
        console.print(_legend())


def as_json_value(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON values. Log-probabilities that are not finite are null, which JSON has."""
    return {name: _finite(value) for name, value in row.items()}


def _print_response(console: Console, row: dict[str, Any]) -> None:
    versions = sorted(set(row["policy_versions"]))
    facts = [
        f"response {row['response_index'] + 1}",
        row["outcome"],
        f"reward {row['reward']:g}",
        *([f"shaped {row['shaped_reward']:g}"] if row["shaped_reward"] != row["reward"] else []),
        f"{len(row['response_ids'])} tokens",
        f"version {'-'.join(map(str, dict.fromkeys((versions[0], versions[-1]))))}" if versions else "no version",
        *(["truncated"] if row["finish_reason"] == "length" else []),
        *(["dropped"] if row["is_dropped"] else []),
    ]
    console.print()
    console.print(Text("  ".join(facts), style="bold"))
    ratios = log_ratios(row)
    if ratios is None:
        console.print(Text("no teacher scored this response", style="dim"))
        console.print(Text(visible(row["response"])))
        return
    tokens = _tokens(row)
    console.print(Text(_summary(ratios), style="dim"))
    console.print(_coloured(tokens, ratios))
    for line in _least_likely(row, tokens, ratios):
        console.print(Text(line, style="dim"))


def _tokens(row: dict[str, Any]) -> list[str]:
    ends = [0, *row["token_ends"]]
    return [visible(row["response"][start:end]) for start, end in itertools.pairwise(ends)]


def _coloured(tokens: Sequence[str], ratios: Sequence[float]) -> Text:
    """Return the response with the agreement as colour. Quotes mark disagreement, so it is visible without colour."""
    text = Text()
    for token, ratio in zip(tokens, ratios, strict=True):
        if math.isnan(ratio):
            text.append(token)
        elif ratio <= DISAGREES:
            text.append(f"{_QUOTES[0]}{token}{_QUOTES[1]}", style="red")
        else:
            text.append(token, style="green" if ratio > AGREES else "yellow")
    return text


def _summary(ratios: Sequence[float]) -> str:
    scored = [ratio for ratio in ratios if not math.isnan(ratio)]
    if not scored:
        return "teacher: no finite score"
    agreeing = sum(ratio > AGREES for ratio in scored)
    disagreeing = sum(ratio <= DISAGREES for ratio in scored)
    return (
        f"teacher: agrees {agreeing / len(scored):.0%}, disagrees {disagreeing / len(scored):.0%}, mean log-ratio "
        f"{sum(scored) / len(scored):+.2f}"
    )


def _least_likely(row: dict[str, Any], tokens: Sequence[str], ratios: Sequence[float]) -> list[str]:
    """Return a line for each of the tokens that the teacher disagrees with most."""
    worst = sorted((ratio, index) for index, ratio in enumerate(ratios) if ratio <= DISAGREES)[:_LISTED]
    return [
        f"  {ratio:+.2f}  {tokens[index]!r} at token {index + 1}: student {row['student_logprobs'][index]:.2f}, "
        f"teacher {row['teacher_logprobs'][index]:.2f}"
        for ratio, index in worst
    ]


def _legend() -> Text:
    return Text.assemble(
        "\nlog-ratio = teacher's log-probability less the student's, in nats: ",
        (f"above {AGREES:g}", "green"),
        ", ",
        (f"to {DISAGREES:g}", "yellow"),
        ", ",
        (f"{_QUOTES[0]}below{_QUOTES[1]}", "red"),
    )


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
