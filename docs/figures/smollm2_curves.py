"""Draw `docs/results/smollm2_curves.png`: rewards and accuracies of the two runs of `make smollm2-demo`.

Run it as `python docs/figures/smollm2_curves.py [TEACHER_RUN STUDENT_RUN]`. With the two run directories it writes
`docs/results/smollm2.json` first; without them it draws from that file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pipelines.run.directory import RunDirectory, read_json_lines

RESULTS = Path(__file__).parents[1] / "results"
FIGURES, TARGET = RESULTS / "smollm2.json", RESULTS / "smollm2_curves.png"
LABELS = {"teacher": "teacher: GRPO", "student": "student: RLAD"}
COLOURS = {"before": "#b0b7c3", "teacher": "#d97706", "student": "#2563eb"}


def figures_of(path: Path) -> dict[str, Any]:
    """Return the mean reward of each step and the accuracies before and after, with their 95% intervals."""
    run = RunDirectory(path)
    before, *_, after = (
        {name: {key: group[key] for key in ("prompts", "mean", "low", "high")} for name, group in groups.items()}
        for groups in ({**line["groups"], "all": line["overall"]} for line in read_json_lines(run.evaluations))
    )
    metrics = read_json_lines(run.metrics)
    return {
        "reward": [line["reward/mean"] for line in metrics],
        "step_s": [line["time/step_s"] for line in metrics],
        "before": before,
        "after": after,
    }


def draw(figures: dict[str, Any]) -> None:
    """Draw the reward of each step, and the accuracy of the released model and of both results by operation."""
    figure, (rewards, accuracies) = plt.subplots(1, 2, figsize=(10, 3.6))
    for name, label in LABELS.items():
        reward = figures[name]["reward"]
        rewards.plot(range(1, len(reward) + 1), reward, marker="o", color=COLOURS[name], label=label)
    rewards.set(xlabel="step", ylabel="mean reward of sampled responses", ylim=(0, 1))
    rewards.legend(frameon=False)
    groups = list(figures["student"]["after"])
    bars = {
        "before": ("as released", figures["student"]["before"]),
        "teacher": (LABELS["teacher"], figures["teacher"]["after"]),
        "student": (LABELS["student"], figures["student"]["after"]),
    }
    for place, (name, (label, accuracy)) in enumerate(bars.items()):
        means = [100 * accuracy[group]["mean"] for group in groups]
        errors = [
            [100 * (accuracy[group]["mean"] - accuracy[group]["low"]) for group in groups],
            [100 * (accuracy[group]["high"] - accuracy[group]["mean"]) for group in groups],
        ]
        at = [index + 0.27 * (place - 1) for index in range(len(groups))]
        accuracies.bar(at, means, 0.25, yerr=errors, capsize=3, color=COLOURS[name], label=label)
    accuracies.set(ylabel="accuracy on held-out problems (%)", ylim=(0, 115))
    accuracies.set_xticks(range(len(groups)), groups)
    accuracies.legend(frameon=False, ncols=3, fontsize=8, loc="upper center")
    for axes in (rewards, accuracies):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(TARGET, dpi=120)


def main() -> None:
    """Write the figures of two runs, if they are given, and draw them."""
    if sys.argv[1:]:
        teacher, student = (figures_of(Path(path)) for path in sys.argv[1:])
        FIGURES.write_text(json.dumps({"teacher": teacher, "student": student}, indent=1) + "\n")
    draw(json.loads(FIGURES.read_text()))


if __name__ == "__main__":
    main()
