"""Area under a learning curve: mean accuracy over the trained steps, which shows speed where final accuracies meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set

from rlad.errors import ContractError
from rlad.evaluation.accuracy import EvaluationSummary


def area_under(steps: Sequence[int], values: Sequence[float]) -> float:
    """Return the mean of a curve over the trained steps, by the trapezoidal rule.

    Args:
        steps: Steps at which the curve is known, ascending, at least two.
        values: Value at each step.

    Raises:
        ContractError: There are fewer than two steps, or the steps do not ascend.
    """
    if len(steps) < 2 or any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ContractError(f"the area under a learning curve requires two ascending steps or more; got {list(steps)}")
    area = sum(
        (steps[number + 1] - steps[number]) * (values[number] + values[number + 1]) / 2
        for number in range(len(steps) - 1)
    )
    return area / (steps[-1] - steps[0])


def common_steps(curves: Iterable[Mapping[int, EvaluationSummary]]) -> list[int]:
    """Return the steps at which all runs were evaluated, ascending."""
    return sorted(set.intersection(*(set(curve) for curve in curves)))


def prompt_areas(
    curve: Mapping[int, EvaluationSummary], steps: Sequence[int], *, left_out: Set[str] = frozenset()
) -> dict[str, float]:
    """Return the area under the learning curve of each prompt. Their mean is the area of all prompts.

    Args:
        curve: Evaluations of a run by trained steps.
        steps: Steps to use, ascending, at least two.
        left_out: Prompts to ignore, for example because an evaluation has no judged response of them.

    Raises:
        ContractError: The evaluations have different prompts, or no results by prompt.
    """
    prompts = curve[steps[0]].prompts.keys() - left_out
    if not prompts or any(curve[step].prompts.keys() - left_out != prompts for step in steps):
        raise ContractError(
            "the area under a learning curve requires results by prompt, of the same prompts at every step; got "
            + ", ".join(f"{len(curve[step].prompts)} at step {step}" for step in steps)
        )
    return {prompt: area_under(steps, [curve[step].prompts[prompt] for step in steps]) for prompt in sorted(prompts)}
