"""Progress of a run on the console, and the tables of its evaluations."""

from __future__ import annotations

import io
import re
from contextlib import ExitStack

from rich.console import Console

from pipelines.run.progress import RunProgress, accuracy_table, evaluation_table, step_line
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise

from ..console_text import WIDTH, cells_of, rendered, terminal, text_of

METRICS = {
    "reward/mean": 0.5,
    "rollout/tokens_per_s": 1234.0,
    "time/step_s": 4.0,
    "time/generate_s": 2.0,
    "time/score_s": 0.4,
    "time/learn_s": 1.2,
    "time/weights_s": 0.4,
}


def evaluation(solved: int, *, samples: int = 1, groups: tuple[str, ...] = ("2", "3")) -> EvaluationSummary:
    """Return a summary of 10 prompts, the first `solved` of which are solved by all samples."""
    return summarise(
        [
            PromptResult(
                prompt_id=str(index),
                groups=(groups[index % len(groups)],),
                rewards=(float(index < solved),) * samples,
                response_tokens=(12_345,) * samples,
                num_truncated=0,
                answers=("42",) * samples,
            )
            for index in range(10)
        ]
    )


def test_step_line_shows_results_time_by_stage_and_bottleneck() -> None:
    assert step_line(METRICS, accuracy=0.61, workers={"rollout": 1}) == (
        "reward 0.50  accuracy 61.0%  1,234 tok/s  4.0 s = generate 50% score 10% learn 30% weights 10%  "
        "rollout bounds the step (50%): one more rollout worker would save about 25%"
    )


def test_step_line_of_an_offline_run_shows_the_loss() -> None:
    times = {name: value for name, value in METRICS.items() if name.startswith("time/")}
    line = step_line({**times, "learner/loss": 0.1234, "traces/tokens_per_s": 5678.0}, accuracy=None, workers={})
    assert line.startswith("loss 0.123  5,678 tok/s  4.0 s = generate 50% score 10% learn 30% weights 10%")


def test_live_display_fits_80_columns() -> None:
    console = terminal()
    # The display is closed before its phases, so that its last frame shows them.
    with ExitStack() as phases, RunProgress(console, total_steps=10_000) as progress:
        progress.step(9_876, METRICS | {"rollout/tokens_per_s": 1_234_567.0}, 0.61, {"rollout": 1})
        phase = phases.enter_context(progress.phase("evaluating on knights_and_knaves", total=10_000))
        phase.advance("12,345 traces of 98,765 responses accepted  1,234,567 tok/s")
        phases.enter_context(progress.phase("starting rollout workers, teachers, verifiers and learner"))
    lines = [line.rstrip() for line in text_of(console).splitlines()]
    assert max(map(len, lines)) <= WIDTH
    assert {
        "  reward 0.50  accuracy 61.0%  1,234,567 tok/s",
        "  4.0 s = generate 50% score 10% learn 30% weights 10%",
        "  rollout bounds the step (50%): one more rollout worker would save about 25%",
        "  12,345 traces of 98,765 responses accepted  1,234,567 tok/s",
    } <= set(lines)
    for whole in (
        r"training .* 9876/10000 \d:",
        r"evaluating on knights_and_knaves .* 1/10000 \d:",
        r"starting rollout workers, teachers, verifiers and learner .*\d:\d\d:\d\d",
    ):
        assert any(re.search(whole, line) for line in lines), whole


def test_steps_are_single_lines_without_a_terminal() -> None:
    console = Console(width=WIDTH, file=io.StringIO())
    with RunProgress(console, total_steps=10) as progress:
        progress.step(3, METRICS, 0.61, {"rollout": 1})
    line = step_line(METRICS, 0.61, {"rollout": 1})
    assert console.file.getvalue() == f"step 3/10  {line}\n"  # type: ignore[attr-defined]


def test_phase_prints_a_line_each_tenth_without_a_terminal() -> None:
    console = Console(width=100, file=io.StringIO())
    with RunProgress(console, total_steps=0) as progress, progress.phase("making traces", total=25) as phase:
        for number in range(1, 26):
            phase.advance(f"{number} accepted")
    lines = [line for line in console.file.getvalue().splitlines() if "accepted" in line]  # type: ignore[attr-defined]
    assert [line.split()[2] for line in lines] == [f"{number}/25" for number in (3, 5, 8, 10, 13, 15, 18, 20, 23, 25)]


def test_accuracy_table_compares_first_and_last_evaluation_by_group() -> None:
    text = rendered(accuracy_table("Accuracy", {"before": evaluation(4), "after": evaluation(8)}, group_by="people"))
    assert re.search(r"all\W+10\W+40\.0%.*80\.0%.*\+40\.0", text)
    assert re.search(r"\b2\W+5\W+40\.0%", text)
    assert {"people", "prompts", "before", "after", "change", "+40.0", "all"} <= cells_of(text)


def test_evaluation_table_of_many_samples_fits_80_columns() -> None:
    groups = ("competition_mathematics", "knights_knaves, 5 people")
    text = rendered(evaluation_table("Accuracy", evaluation(4, samples=64, groups=groups), group_by="task, people"))
    assert max(map(len, text.splitlines())) <= WIDTH
    cells = cells_of(text)
    assert {"mean@64", "maj@64", *(f"pass@{k}" for k in (2, 4, 8, 16, 32, 64)), "tokens", "truncated"} <= cells
    assert {"task, people", "prompts", "12,345", "0.0%", *groups, "all"} <= cells
    assert any(re.fullmatch(r"40\.0% \(\d+%-\d+%\)", cell) for cell in cells)
