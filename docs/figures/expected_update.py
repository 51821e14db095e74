"""Draw `docs/results/trrd_expected_update.png`: the updates that the anchor of TRRD vetoes, and where that leads.

Run it as `python docs/figures/expected_update.py`. Everything is computed exactly at pi = pi_old, with the losses of
`rlad.objectives`; nothing is sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from rlad.advantages import group_advantages
from rlad.objectives import TrrdConfig, build_objective

TARGET = Path(__file__).parents[1] / "results" / "trrd_expected_update.png"
GROUP_SIZE = 8
TEACHER_RIGHT = 0.03
"""Probability that the teacher gives to the right token."""
METHODS = {
    "alpha 0.5, c 1 (the paper's)": TrrdConfig(),
    "alpha 0.7, c 1": TrrdConfig(alpha=0.7),
    "alpha 0.5, clamp auto": TrrdConfig(teacher_log_ratio_clamp="auto"),
    "alpha 1 (GRPO)": TrrdConfig(alpha=1.0),
}


def update_weight(config: TrrdConfig, log_ratio: float, advantage: float) -> float:
    """Return the size of a token's update at pi = pi_old: minus d loss / d log pi, divided by A.

    Args:
        config: Settings of the objective.
        log_ratio: log(pi_old / pi_T) of the token, in nats.
        advantage: A of the token, not 0.
    """
    policy = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    build_objective(config).packed(
        policy_logprobs=policy,
        behaviour_logprobs=policy.detach(),
        teacher_logprobs=policy.detach() - log_ratio,
        advantages=torch.tensor([advantage], dtype=torch.float64),
        weights=torch.ones(1, dtype=torch.float64),
    ).loss.backward()
    assert policy.grad is not None
    return -policy.grad.item() / advantage


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One decisive token with a right and a wrong value, in responses of which the rest may fail too.

    Attributes:
        start: Probability of the right token at the start.
        rest_right: Probability that the rest of a response is right. The reward is 1 if both are.
    """

    start: float
    rest_right: float = 1.0


def expected_push(config: TrrdConfig, right: float, rest_right: float) -> float:
    """Return the expected change of the right token's logit for a group of 8, per unit of learning rate.

    The expectation is a sum over the number of responses with reward 1.
    """
    solved = right * rest_right
    to_teacher = math.log(right / TEACHER_RIGHT), math.log((1 - right) / (1 - TEACHER_RIGHT))
    weight = {
        (token, sign): update_weight(config, to_teacher[token], float(sign)) for token in (0, 1) for sign in (1, -1)
    }
    right_if_failed = right * (1 - rest_right) / (1 - solved)
    push = 0.0
    for count in range(1, GROUP_SIZE):
        chance = math.comb(GROUP_SIZE, count) * solved**count * (1 - solved) ** (GROUP_SIZE - count)
        good, bad = (float(value) for value in group_advantages([1.0] * count + [0.0] * (GROUP_SIZE - count))[[0, -1]])
        from_solved = count * good * weight[0, 1] * (1 - right)
        from_failed = (
            (GROUP_SIZE - count)
            * bad
            * (right_if_failed * weight[0, -1] * (1 - right) - (1 - right_if_failed) * weight[1, -1] * right)
        )
        push += chance * (from_solved + from_failed) / GROUP_SIZE
    return push


def drift(config: TrrdConfig, choice: Choice, *, updates: int, lr: float = 0.1) -> list[float]:
    """Return the probability of the right token after each expected update, the start first."""
    logit = math.log(choice.start / (1 - choice.start))
    found = [choice.start]
    for _ in range(updates):
        logit += lr * expected_push(config, found[-1], choice.rest_right)
        found.append(1 / (1 + math.exp(-logit)))
    return found


CHOICES = {
    "Rest always right, start 0.2": Choice(start=0.2),
    "Rest right with 0.3, start 0.7": Choice(start=0.7, rest_right=0.3),
}


def print_table() -> None:
    """Print the table of docs/methods.md: the probability of the right token in the end."""
    more = {"alpha 0.75, c 1": TrrdConfig(alpha=0.75), "alpha 0.8, c 1": TrrdConfig(alpha=0.8)}
    for name, config in (METHODS | more).items():
        ends = [drift(config, choice, updates=400, lr=0.3)[-1] for choice in CHOICES.values()]
        print(name, *(f"{end:.2f}" for end in ends), sep=" | ")


def main() -> None:
    """Draw the figure and print the table."""
    from pipelines.reports.figures import COLOURS, new_figure, write_png

    with new_figure(11.0, 3.6) as figure:
        weights, *drifts = figure.subplots(1, 3)
        distances = [number / 200 for number in range(-400, 401)]
        paper, _, auto, _ = METHODS.values()
        lines = (
            ("A > 0, c = 1 (the paper's)", paper, 1.0, "-", COLOURS[0]),
            ("A < 0, c = 1 (the paper's)", paper, -1.0, "-", COLOURS[4]),
            ("either sign, clamp auto", auto, 1.0, "--", COLOURS[2]),
        )
        for label, config, advantage, style, colour in lines:
            sizes = [update_weight(config, distance, advantage) for distance in distances]
            weights.plot(distances, sizes, style, color=colour, linewidth=1.6, label=label)
        weights.set_title("Update of a token, alpha 0.5")
        weights.set_xlabel("log(pi_old / pi_T), positive if the student prefers it")
        weights.set_ylabel("|d loss / d log pi| / |A|")
        weights.set_ylim(-0.05, 2.4)
        weights.legend(fontsize=7, loc="upper left")
        for axes, (title, choice) in zip(drifts, CHOICES.items(), strict=True):
            for number, (name, config) in enumerate(METHODS.items()):
                curve = drift(config, choice, updates=150, lr=0.3)
                axes.plot(curve, color=COLOURS[number], linewidth=1.6, label=name)
            axes.set_title(title)
            axes.set_xlabel("expected updates")
            axes.set_ylim(0, 1.02)
        drifts[0].set_ylabel("P(right token); the teacher's is 0.03")
        handles, labels = drifts[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), fontsize=8)
        write_png(figure, TARGET)
    print_table()


if __name__ == "__main__":
    main()
