"""`rlad teacher check`: its configuration, kinds of problem, and output in a terminal of 80 columns."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipelines.cli.tables.teacher import print_check
from pipelines.reports.teacher_figure import write_teacher_figure
from pipelines.teacher_check import CheckResult, anchor_of, kinds_of, scoring_config
from rlad.config import load_run_config
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError
from rlad.evaluation.teacher_check import ScoredResponses, check_teacher
from rlad.evaluation.teacher_verdict import verdict

CONFIGS = Path(__file__).parents[3] / "configs"
SMOKE = CONFIGS / "smoke_cpu.yaml"


def test_check_requests_likely_tokens_of_teacher_and_student_under_the_settings_of_the_run() -> None:
    config = load_run_config(SMOKE, ["rollout.temperature=0.8", "teacher.replicas=2", "teacher.engine=transformers"])
    checked = scoring_config(config, top_k=5)
    assert checked.objective.teacher_support == 5
    assert sorted(checked.scoring_pools) == ["reference", "teacher"]
    student = checked.scoring_pools["reference"]
    assert (student.path, student.dtype, student.engine) == (config.student.path, "float32", "transformers")
    assert student.replicas == 1
    assert checked.teacher == config.teacher
    assert checked.rollout == config.rollout


def test_check_without_overlap_deploys_no_second_student() -> None:
    checked = scoring_config(load_run_config(SMOKE, []), top_k=0)
    assert list(checked.scoring_pools) == ["teacher"]
    assert checked.objective.teacher_support is None


def test_teacher_of_an_offline_run_can_be_checked() -> None:
    checked = scoring_config(load_run_config(CONFIGS / "offline_kk_cpu.yaml", []), top_k=4)
    assert checked.offline is None
    assert list(checked.teacher_pools) == ["teacher"]


def test_run_without_a_teacher_is_refused() -> None:
    config = load_run_config(SMOKE, ["objective={name: grpo}", "teacher=null"])
    with pytest.raises(ConfigError, match="requires a teacher; the configuration has none"):
        scoring_config(config, top_k=8)


def test_vetoes_are_those_of_the_runs_trrd_or_of_the_papers() -> None:
    narrow = anchor_of(load_run_config(SMOKE, ["objective.teacher_log_ratio_clamp=0.3", "objective.eps_high=0.25"]))
    assert (narrow.clamp, narrow.eps_high) == ((-0.3, 0.3), 0.25)
    for objective in ("objective={name: kdrl, beta: 0.1}", "objective={name: opd}"):
        paper = anchor_of(load_run_config(SMOKE, [objective]))
        assert (paper.alpha, paper.clamp, paper.eps_low, paper.eps_high) == (0.5, (-1.0, 1.0), 0.2, 0.28)


def test_kinds_of_a_prompt_are_its_values_of_the_grouping_keys() -> None:
    record = PromptRecord(id="1", task="kk", prompt="?", answer="!", metadata={"people": 4, "form": "compact"})
    assert kinds_of(record, "people") == ("people 4",)
    assert kinds_of(record, ["task", "people", "source"]) == ("task kk", "people 4")
    assert kinds_of(record, "source") == ("task kk",)


def example() -> CheckResult:
    def group(log_ratios: list[float], kind: str) -> ScoredResponses:
        return ScoredResponses(
            kinds=(kind,),
            rewards=np.array([1.0, 0.0]),
            advantages=np.array([1.0, -1.0]),
            is_judged=np.array([True, True]),
            offsets=np.array([0, 1, 2]),
            student=np.array([-3.0, -3.0]),
            teacher=-3.0 - np.array(log_ratios),
            overlap=np.array([0.5, 0.5]),
        )

    groups = [group([-1.0, 1.0], "people 2") for _ in range(12)] + [group([12.34, -1.0], "people 10")] * 12
    anchor = anchor_of(load_run_config(SMOKE, []))
    check = check_teacher(groups, anchor)
    return CheckResult(
        check=check,
        anchor=anchor,
        verdict=verdict(check),
        prompts=len(groups),
        responses=2 * len(groups),
        picture=Path("runs/kk-teacher.png"),
    )


def test_output_fits_80_columns_and_names_the_kind_on_which_the_teacher_is_wrong() -> None:
    output = io.StringIO()
    print_check(example(), Console(file=output, width=80, force_terminal=True, color_system=None))
    text = output.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "people 10: the teacher prefers wrong answers to right ones" in " ".join(text.split())
    assert "+12.34" in text
    assert "100% (76%-100%)" in text  # Wilson's interval of 12 of 12


def test_json_holds_the_verdict_and_plain_numbers() -> None:
    found = example().as_dict()
    assert found["kinds"]["people 10"]["agreement"]["mean"] == 0.0
    assert found["anchor"] == {"alpha": 0.5, "clamp": [-1.0, 1.0], "eps_low": 0.2, "eps_high": 0.28}
    assert (found["prompts"], found["responses"]) == (24, 48)


def test_picture_is_drawn_also_where_figures_are_unknown(tmp_path: Path) -> None:
    result = example()
    unknown = ScoredResponses(
        kinds=("task kk",),
        rewards=np.array([1.0]),
        advantages=np.array([0.0]),
        is_judged=np.array([True]),
        offsets=np.array([0, 1]),
        student=np.array([-1.0]),
        teacher=np.array([math.nan]),
        overlap=np.array([math.nan]),
    )
    path = tmp_path / "teacher.png"
    write_teacher_figure(check_teacher([unknown], result.anchor), result.anchor, path, title="unknown")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
