"""Collection of the facts of `rlad doctor`, and its report."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.doctor.checks import run_checks
from pipelines.doctor.facts import Gap, Gpu, Trial
from pipelines.doctor.links import all_reduce_gb_s
from pipelines.doctor.machine import collect_machine, parse_gpus
from pipelines.doctor.report import as_dict, print_report
from pipelines.doctor.trial import logit_dtypes, measured_trial, trial_config
from rlad.errors import ConfigError

from .healthy import MEMORY, ON_GPU, TRIAL


def test_gpus_and_driver_are_read_from_the_output_of_nvidia_smi() -> None:
    text = "580.95.05, NVIDIA H200, 143771\n580.95.05, NVIDIA H200, 143771\n"
    assert parse_gpus(text) == ("580.95.05", (Gpu(name="NVIDIA H200", memory_gib=143771 / 1024),) * 2)
    assert parse_gpus("\n") == (None, ())


def test_missing_shared_memory_is_reported_as_none(tmp_path: Path) -> None:
    memory = collect_machine(tmp_path / "shm").shared_memory
    assert (memory.total_gib, memory.is_writable) == (0.0, False)
    present = collect_machine(tmp_path).shared_memory
    assert present.is_writable
    assert present.total_gib >= present.free_gib > 0


def test_trial_reads_gaps_times_and_memory_from_the_steps() -> None:
    steps = [
        {
            "learner/logprob_gap_mean": 0.1 * number,
            "learner/logprob_gap_max": 0.2 * number,
            "time/weights_s": float(number),
            "learner/peak_memory_gib": 3.0 - number,
            "objective/log_ratio_teacher_abs_mean": 0.01 * number,
        }
        for number in (1, 2)
    ]
    steps.append({"time/weights_s": 3.0})  # no token was trained on
    begun = Trial(dtype="float32", transport="gloo", device="CPU", planned_gib=1.5)
    trial = measured_trial(begun, steps)
    assert trial.learner_gaps == (Gap(mean=0.1, largest=0.2), Gap(mean=0.2, largest=0.4))
    assert trial.teacher_gap == Gap(mean=0.01)
    assert (trial.update_s, trial.learner_gib, trial.planned_gib) == ((1.0, 2.0), 2.0, 1.5)


@pytest.mark.parametrize(
    ("gpus", "transport", "shares", "engine"),
    [
        (0, "object_store", (0, 0, 0), "vllm"),
        (0, "gloo", (0, 0, 0), "vllm"),
        (1, "object_store", (0.3, 0.3, 0.4), "vllm"),
        (1, "ipc", (0.3, 0.3, 0.4), "vllm"),
        (2, "nccl", (1, 0, 1), "transformers"),
        (3, "nccl", (1, 1, 1), "vllm"),
    ],
)
def test_trial_uses_the_gpus_that_there_are(
    tmp_path: Path, gpus: int, transport: str, shares: tuple[float, float, float], engine: str
) -> None:
    config = trial_config(tmp_path, gpus=gpus, transport=transport, address=None)
    (teacher,) = config.scoring_pools.values()
    found = (config.rollout.gpus_per_worker, teacher.gpus_per_replica, config.learner.gpus_per_rank)
    assert (found, teacher.engine, teacher.path) == (shares, engine, config.student.path)
    assert config.student.dtype == ("bfloat16" if gpus else "float32")


def test_transport_that_does_not_fit_the_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nccl' requires one GPU per learner rank"):
        trial_config(tmp_path, gpus=0, transport="nccl", address=None)


def test_trial_names_the_data_type_of_logits(tmp_path: Path) -> None:
    head = "rollout.engine_args.hf_overrides.head_dtype=bfloat16"
    exact = trial_config(tmp_path, gpus=1, transport="object_store", address=None)
    assert logit_dtypes(exact) == {"rollout": "float32", "teacher": "float32"}
    rounded = trial_config(tmp_path, gpus=1, transport="object_store", address=None, overrides=[head])
    assert logit_dtypes(rounded) == {"rollout": "bfloat16", "teacher": "float32"}
    on_cpu = trial_config(tmp_path, gpus=0, transport="object_store", address=None, overrides=[head])
    assert logit_dtypes(on_cpu) == {"rollout": "float32", "teacher": "float32"}  # cast up with its float32 weights


def test_all_reduce_is_checked_and_measured(tmp_path: Path) -> None:
    assert all_reduce_gb_s(0, 1, f"file://{tmp_path / 'rendezvous'}", "gloo", num_bytes=1 << 16) > 0


def test_report_fits_80_columns_and_names_the_remedies() -> None:
    memory = replace(MEMORY, is_writable=False)
    facts = replace(
        ON_GPU,
        machine=replace(ON_GPU.machine, shared_memory=memory),
        trial=replace(TRIAL, error="EngineError: " + "vLLM does not start with a model " * 9),
    )
    checks = run_checks(facts)
    file = io.StringIO()
    print_report(checks, Console(file=file, width=200))
    table = [line for line in file.getvalue().splitlines() if line.startswith(("┏", "┃", "┡", "│", "└"))]
    assert max(map(len, table)) == 80
    assert "error shared memory: Give the container more" in file.getvalue()
    report = as_dict(checks, facts)
    assert report["status"] == "error"
    assert json.loads(json.dumps(report))["facts"]["machine"]["shared_memory"]["is_writable"] is False


def test_quick_examination_of_this_machine_starts_no_engine() -> None:
    result = CliRunner().invoke(app, ["doctor", "--quick", "--json"])
    found = json.loads(result.stdout)
    assert (found["facts"]["trial"], found["facts"]["links"]) == (None, None)
    assert {"builds", "versions", "GPU driver", "shared memory", "sandbox"} <= {
        check["name"] for check in found["checks"]
    }
    assert result.exit_code == (1 if found["status"] == "error" else 0)
