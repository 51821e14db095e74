"""Tables and verdict of `rlad teacher check`."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from pipelines.run.tables import Row, fitted_table
from pipelines.teacher_check import CheckResult
from rlad.evaluation.accuracy import Interval
from rlad.evaluation.teacher_check import KindStatistics


def print_check(result: CheckResult, console: Console) -> None:
    """Print the table and the verdict of a check."""
    rows = [*result.check.kinds.items(), ("all", result.check.overall)]
    headers = ["kind", "prompts", "mixed", "reward", "agreement", "against A", "overlap"]
    console.print(
        fitted_table(
            f"Teacher on {result.responses} responses",
            headers,
            _rows({name: _preference_cells(each) for name, each in rows}),
            caption="Agreement: pairs of responses that the teacher orders as the reward.\n"
            "Against A: tokens that the teacher pulls against the advantage.\n"
            "Overlap: likely tokens that student and teacher have in common.",
        )
    )
    low, high = result.anchor.clamp
    console.print(
        fitted_table(
            "Log ratio to the teacher, and tokens that TRRD clips at the first update",
            ["kind", "log ratio", "better", "worse", "veto A > 0", "veto A < 0", "missing"],
            _rows({name: _ratio_cells(each) for name, each in rows}),
            caption=f"Log ratio: mean log pi_old - log pi_T, in nats.\n"
            f"Veto: TRRD with alpha {result.anchor.alpha:g} and a clamp of {low:.2f} to {high:.2f}.",
        )
    )
    for sentence in result.verdict:
        console.print(f"• {sentence}", highlight=False, markup=False)
    console.print(f"picture: {result.picture}", soft_wrap=True, highlight=False, markup=False)


def _rows(cells: Mapping[str, list[str]]) -> list[Row]:
    names = list(cells)
    return [
        Row(
            name=name,
            cells=cells[name],
            style="bold" if name == "all" else None,
            ends_section=at == len(names) - 2,
        )
        for at, name in enumerate(names)
    ]


def _preference_cells(each: KindStatistics) -> list[str]:
    return [
        str(each.prompts),
        str(each.mixed_prompts),
        "-" if each.reward is None else f"{each.reward:.2f}",
        _with_interval(each.agreement),
        _share(each.token_disagreement),
        _share(each.overlap),
    ]


def _ratio_cells(each: KindStatistics) -> list[str]:
    ratios = (each.log_ratio, each.log_ratio_better, each.log_ratio_worse)
    return [
        *("-" if value is None else f"{value:+.2f}" for value in ratios),
        *(_share(value) for value in (each.veto_positive, each.veto_negative, each.missing)),
    ]


def _with_interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.0%} [dim]({interval.low:.0%}-{interval.high:.0%})[/]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
