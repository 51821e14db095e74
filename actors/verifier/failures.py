"""When failures of verification end a run. Pure bookkeeping, without Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from rlad.contracts import Outcome
from rlad.errors import VerifierFailureError
from rlad.failures import Action, Event, decide

# Latest responses that the fraction is taken over, and the least number that it needs.
_WINDOW = 256
_LEAST = 32


class FailureLimit:
    """Limit on the fraction of responses whose verification times out or fails.

    Such responses are left out of updates and of accuracies. If most of them are, what remains is no sample of the
    policy's responses.
    """

    def __init__(self, max_fraction: float) -> None:
        """
        Args:
            max_fraction: Largest fraction of the latest 256 responses; 1 means unlimited.
        """
        self._max_fraction = max_fraction
        self._latest: deque[tuple[Outcome, str | None]] = deque(maxlen=_WINDOW)

    def record(self, outcomes: Sequence[int], problems: Sequence[str | None]) -> None:
        """Add the responses of a group.

        Args:
            outcomes: `Outcome` of each response.
            problems: The verifier's own words on each response that it failed on; None for the others.

        Raises:
            VerifierFailureError: The fraction exceeds the limit.
        """
        self._latest.extend((Outcome(outcome), problem) for outcome, problem in zip(outcomes, problems, strict=True))
        failed = [(outcome, problem) for outcome, problem in self._latest if not outcome.is_judged]
        budget = self._max_fraction * len(self._latest) if len(self._latest) >= _LEAST else len(self._latest)
        if decide(Event.RESPONSE_UNJUDGED, happened=len(failed), budget=budget) is Action.DROP:
            return
        counts = Counter(outcome.name.lower() for outcome, _ in failed)
        words = Counter(problem for _, problem in failed if problem)
        said = "; ".join(f"{problem} ({count} times)" for problem, count in words.most_common(3))
        raise VerifierFailureError(
            f"verification failed on {len(failed)} of the latest {len(self._latest)} responses "
            f"({', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}), more than "
            f"verifier_pool.max_failed_fraction {self._max_fraction:g}. "
            + (
                f"The verifier said: {said}"
                if said
                else "All of them exceeded verifier_pool.timeout_s or their own limit"
            )
        )
