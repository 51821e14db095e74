"""Commands and actors import only what they use: importing torch takes seconds of CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.run.directory import RunDirectory
from rlad.config import load_run_config

ROOT = Path(__file__).parents[3]
SMOKE = "configs/smoke_cpu.yaml"
OF_MODELS_ELSEWHERE = "configs/qwen3_8b_math_30k.yaml student.path=/models/none teacher.path=/models/none"
BY_HAND = "simulate {smoke} --token-ms 10 --learner-token-ms 0.5 --teacher-token-ms 0.2 --steps 2"

# Each line of its input is a command, all of one process; what it prints of each: the heavy packages that came with it
# or one before it, and its output.
COMMANDS = """
import json, shlex, sys
from typer.testing import CliRunner
from pipelines.cli.main import app
told = []
for line in sys.stdin:
    result = CliRunner().invoke(app, shlex.split(line))
    told.append([sorted({"torch", "transformers", "vllm", "deepspeed", "ray"} & sys.modules.keys()), result.output +
    repr(result.exception)])
print(json.dumps(told))
"""
MODULES = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, *sorted({"torch", "transformers", "vllm", "deepspeed"} & sys.modules.keys()))
"""


@pytest.fixture
def ended_run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    with run.hold(load_run_config(ROOT / SMOKE), resume=False):
        pass
    return run


def heavy_packages_of(commands: list[tuple[str, str]], tmp_path: Path) -> list[list[str]]:
    """Return the heavy packages that each command imported. A command is given with a part of its expected output."""
    environment = {**os.environ, "RLAD_SCHEDULES": f"sqlite:///{tmp_path / 'schedules.sqlite'}", "COLUMNS": "200"}
    words = "".join(f"{command}\n" for command, _ in commands)
    result = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=words,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    for (command, says), (_, output) in zip(commands, told, strict=True):
        assert says in output, f"{command}: {output}"
    return [heavy for heavy, _ in told]


def test_commands_without_cluster_and_model_import_neither_torch_nor_ray(
    ended_run: RunDirectory, tmp_path: Path
) -> None:
    commands = [
        ("--help", "RL-aware distillation"),
        ("registry list --registry {tmp}/registry", "no models in the registry"),
        ("schedule add nightly {smoke} --cron '0 2 * * *'", ""),
        ("schedule list", ""),
        (BY_HAND, "x lower"),
        ("deploy render {elsewhere} --out {tmp}/manifests", "rayjob.yaml"),
        ("report {run}", "nothing to report yet"),
        ("samples {run}", "no samples at"),
    ]
    filled = [
        (command.format(smoke=SMOKE, elsewhere=OF_MODELS_ELSEWHERE, tmp=tmp_path, run=ended_run.path), says)
        for command, says in commands
    ]
    assert heavy_packages_of(filled, tmp_path) == [[]] * len(commands)


def test_commands_that_only_ask_a_cluster_import_no_torch(ended_run: RunDirectory, tmp_path: Path) -> None:
    commands = [
        (f"status {ended_run.path}", "not running; continue it with --resume"),
        (f"plan {OF_MODELS_ELSEWHERE} cluster.address=null", "no model at"),
        ("list --address 127.0.0.1:1", "no Ray cluster answers"),
        ("logs a-job --address 127.0.0.1:1", "no Ray cluster answers"),
    ]
    assert heavy_packages_of(commands, tmp_path) == [["ray"]] * len(commands)


def test_actors_without_computation_and_the_step_pipeline_import_no_torch() -> None:
    modules = [
        "rlad.config",
        "rlad.data.chat",
        "rlad.starters",
        "actors.experience.broker",
        "actors.controller",
        "actors.verifier.killable_process",
        "actors.verifier.worker",
        "actors.verifier.reward_pool",
        "actors.samples.recorder",
        "actors.teacher.client",
        "actors.teacher.http_gateway",
        "actors.teacher.deployment",
        "actors.teacher.remote",
        "actors.experience.transfers",
        "actors.weights.transports",
        "pipelines.training.step_pipeline",
        "pipelines.training.group_pipeline",
        "pipelines.forecast.simulated",
        "pipelines.jobs.submission",
        "pipelines.schedules.daemon",
        "pipelines.teacher_service",
    ]
    command = [sys.executable, "-c", MODULES, *modules]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    assert result.stdout.splitlines() == modules


def test_invalid_settings_are_reported_before_torch_is_imported(tmp_path: Path) -> None:
    commands = [
        ("run configs/nowhere.yaml", "no configuration file"),
        (f"run {SMOKE} objective.alhpa=0.3", "did you mean `alpha`"),
        ("compare configs/ablation_alpha_cpu.yaml --methods alpha-2", "unknown method alpha-2"),
        (f"eval {tmp_path} --config configs/eval_math.yaml --sets aime", "no evaluation set aime"),
    ]
    assert heavy_packages_of(commands, tmp_path) == [[]] * len(commands)
