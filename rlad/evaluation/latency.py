"""Latency of a model: the time of whole responses at a fixed number of requests at once, and its gate.

What changes between the versions of a student is mostly the length of its responses, so that the time of a whole
response is what users notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlad.errors import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Times of the responses to some requests.

    Attributes:
        requests: Number of responses.
        concurrency: Requests at once on each rollout worker.
        median_s: Median of the time from a request to its whole response, seconds.
        p95_s: 95th percentile of that time, seconds.
        response_tokens: Mean length of a response, tokens.
        tokens_per_s: Tokens of all responses by the time in which they came, of all rollout workers together.
    """

    requests: int
    concurrency: int
    median_s: float
    p95_s: float
    response_tokens: float
    tokens_per_s: float

    def __str__(self) -> str:
        return (
            f"p95 {self.p95_s:.2f} s, median {self.median_s:.2f} s a response of {self.response_tokens:.0f} tokens "
            f"({self.requests} responses, {self.concurrency} requests at once on each worker, "
            f"{self.tokens_per_s:,.0f} tokens/s)"
        )


def summarise_latency(
    seconds: Sequence[float], response_tokens: Sequence[int], *, elapsed_s: float, concurrency: int
) -> Latency:
    """Summarise the times of responses.

    Args:
        seconds: Time of each response, seconds.
        response_tokens: Number of tokens of each response.
        elapsed_s: Time in which all responses came, seconds.
        concurrency: Requests at once on each rollout worker.

    Raises:
        ContractError: There is no response, or the two sequences differ in length.
    """
    if not seconds or len(seconds) != len(response_tokens):
        raise ContractError(f"expected as many times as lengths; got {len(seconds)} and {len(response_tokens)}")
    median, p95 = np.percentile(seconds, [50, 95])
    return Latency(
        requests=len(seconds),
        concurrency=concurrency,
        median_s=float(median),
        p95_s=float(p95),
        response_tokens=float(np.mean(response_tokens)),
        tokens_per_s=sum(response_tokens) / elapsed_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyDecision:
    """Decision of a gate on the latency.

    Attributes:
        is_passed: Whether the candidate is fast enough.
        reason: One sentence for the record.
    """

    is_passed: bool
    reason: str


def check_latency(
    candidate: Latency, incumbent: Latency | None, *, max_s: float | None, max_growth: float | None
) -> LatencyDecision:
    """Check the 95th percentile of a candidate's response times.

    Args:
        candidate: Latency of the candidate.
        incumbent: Latency of the version in production, measured alike; None if nothing is in production yet, which
            passes `max_growth`.
        max_s: Maximum, seconds; None for no maximum.
        max_growth: Maximum growth against the incumbent as a share of its percentile, at least 0; None does not
            compare.
    """
    facts, problems = [str(candidate)], list[str]()
    if max_s is not None and candidate.p95_s > max_s:
        problems.append(f"slower than the maximum of {max_s:g} s")
    if max_growth is not None and incumbent is not None:
        growth = candidate.p95_s / incumbent.p95_s - 1
        facts.append(f"against p95 {incumbent.p95_s:.2f} s of the version in production: {growth:+.0%}")
        if growth > max_growth:
            problems.append(f"slower by more than {max_growth:.0%}")
    reason = f"{'; '.join(problems)} ({', '.join(facts)})" if problems else ", ".join(facts)
    return LatencyDecision(is_passed=not problems, reason=reason)
