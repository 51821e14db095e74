"""A run directory belongs to one run, one configuration and one process."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.run.directory import PromptsRecord, RunDirectory, read_json_lines
from rlad.config import RunConfig, load_run_config
from rlad.errors import ConfigError, CorruptFileError, PlanError, RunDirectoryError

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"


@pytest.fixture
def config() -> RunConfig:
    return load_run_config(SMOKE)


def test_the_resolved_configuration_is_kept_and_read_back(config: RunConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        assert run.read_config() == config


def test_an_existing_run_needs_resume(config: RunConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        pass
    with pytest.raises(RunDirectoryError, match="--resume"), run.hold(config, resume=False):
        pass
    with run.hold(config, resume=True):
        pass


def test_a_run_is_not_continued_with_other_settings(config: RunConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        pass
    other = load_run_config(SMOKE, ["learner.zero_stage=3", "seed=5"])
    with pytest.raises(ConfigError, match="seed, learner"), run.hold(other, resume=True):
        pass


def test_a_run_is_continued_with_another_budget(config: RunConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        pass
    with run.hold(load_run_config(SMOKE, ["cost.budget.cpu_hours=5"]), resume=True):
        pass


def test_a_directory_with_other_files_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="holds no run"), RunDirectory(tmp_path).hold(config, resume=True):
        pass


def test_a_new_run_that_fails_before_it_writes_leaves_the_directory_free(config: RunConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(PlanError), run.hold(config, resume=False):
        raise PlanError("an evaluation prompt is also a training prompt")
    other = load_run_config(SMOKE, ["seed=5"])
    with run.hold(other, resume=False):
        assert run.read_config() == other


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_fails_after_it_has_written_keeps_its_configuration(
    config: RunConfig, tmp_path: Path, resume: bool
) -> None:
    run = RunDirectory(tmp_path / "run")
    if resume:
        with run.hold(config, resume=False):
            pass
    with pytest.raises(PlanError), run.hold(config, resume=resume):
        run.ledger.write_text("started")
        raise PlanError("the teacher is gone")
    assert run.read_config() == config


def test_a_failed_attempt_to_continue_keeps_the_run(config: RunConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        pass
    with pytest.raises(PlanError), run.hold(config, resume=True):
        raise PlanError("the cluster is too small")
    assert run.read_config() == config


def test_a_start_killed_between_lock_and_configuration_leaves_the_directory_free(
    config: RunConfig, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.4711").write_text("half of a config")
    with run.hold(config, resume=False):
        assert run.read_config() == config


def test_two_processes_do_not_run_in_one_directory(config: RunConfig, tmp_path: Path) -> None:
    program = f"""
import sys
from pipelines.run.directory import PromptsRecord, RunDirectory
from rlad.config import load_run_config
with RunDirectory({str(tmp_path / "run")!r}).hold(load_run_config({str(SMOKE)!r}), resume=False):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "held"
        with (
            pytest.raises(RunDirectoryError, match="another process"),
            RunDirectory(tmp_path / "run").hold(config, resume=True),
        ):
            pass
        other.kill()
    with RunDirectory(tmp_path / "run").hold(config, resume=True):
        pass


def test_an_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [line["step"] for line in read_json_lines(path)] == [1, 2]


def test_a_continued_run_must_have_the_same_teachers(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.record_teachers({"logic": "a1", "math": "b2"})
    run.record_teachers({"math": "b2", "logic": "a1"})
    with pytest.raises(ConfigError, match=f"math is another model than when {tmp_path} was started"):
        run.record_teachers({"logic": "a1", "math": "b3"})
    with pytest.raises(ConfigError, match="logic, third is another model"):
        run.record_teachers({"math": "b2", "third": "c"})


INPUTS = {"the training prompts (prompts)": "a", "the student's tokenizer": "b", "the student's chat template": "c"}


@pytest.mark.parametrize("changed", list(INPUTS))
def test_a_run_is_not_continued_with_other_data_tokenizer_or_template(
    config: RunConfig, tmp_path: Path, changed: str
) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        run.record_inputs(INPUTS)
    with run.hold(config, resume=True):
        run.record_inputs(INPUTS)
        with pytest.raises(ConfigError, match=rf"other content of: {re.escape(changed)} .*restore them"):
            run.record_inputs({**INPUTS, changed: "other"})
        with pytest.raises(ConfigError, match=re.escape(changed)):
            run.require_same_inputs({name: value for name, value in INPUTS.items() if name != changed})


def test_a_flipped_bit_in_a_file_that_a_resume_depends_on_is_found(config: RunConfig, tmp_path: Path) -> None:
    run, chance = RunDirectory(tmp_path / "run"), random.Random(5)
    with run.hold(config, resume=False):
        run.record_inputs(INPUTS)
        run.record_teachers({"teacher": "f" * 32})
        run.seals.append(run.evaluations, '{"step": 0, "accuracy": 0.25}\n')
    for name in ("config.yaml", "inputs.json", "teachers.json", "evaluations.jsonl", "seals.json"):
        honest = (run.path / name).read_bytes()
        for _ in range(8):
            content = bytearray(honest)
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            (run.path / name).write_bytes(content)
            with pytest.raises(CorruptFileError, match=re.escape(str(run.path))), run.hold(config, resume=True):
                pass
        (run.path / name).write_bytes(honest)
    with run.hold(config, resume=True):
        pass


@pytest.mark.parametrize("name", ["checkpoints", "export/model.safetensors", "metrics.jsonl", "tracking"])
def test_a_run_directory_with_a_planted_link_is_refused(config: RunConfig, tmp_path: Path, name: str) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        pass
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).symlink_to(tmp_path)
    with pytest.raises(CorruptFileError, match="is a symbolic link"), run.hold(config, resume=True):
        pass


def test_links_that_a_tracker_made_for_itself_do_not_keep_a_run_from_continuing(
    config: RunConfig, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        (run.tracking / "wandb").mkdir(parents=True)
        (run.tracking / "wandb" / "latest-run").symlink_to(tmp_path)
    with run.hold(config, resume=True):
        pass


def test_a_continued_run_must_have_the_same_prompts(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    started = PromptsRecord(
        training="a1", evaluation="b2", versions={"s3://bucket/rows.jsonl": "c3", "hub data set x": "d4"}
    )
    assert run.recorded_prompts() is None
    run.require_same_prompts(started)
    run.record_prompts(started)
    run.require_same_prompts(PromptsRecord(training="a1", evaluation="b2", versions={}))
    run.record_prompts(PromptsRecord(training="a9", evaluation="b9", versions={}))  # only the start is recorded
    assert run.recorded_prompts() == started
    with pytest.raises(
        ConfigError, match=r"the training prompts differ .* a1, now a2; changed: s3://bucket/rows.jsonl\)"
    ):
        run.require_same_prompts(
            PromptsRecord(training="a2", evaluation="b2", versions={**started.versions, "s3://bucket/rows.jsonl": "c9"})
        )
    with pytest.raises(ConfigError, match="the evaluation prompts differ .* b2, now b3; changed: local files"):
        run.require_same_prompts(PromptsRecord(training="a1", evaluation="b3", versions=started.versions))
