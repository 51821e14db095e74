"""The command line: errors are one message and an exit status, without a traceback; help is complete."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import pytest
import typer
import typer.core
import yaml
from typer.testing import CliRunner

from pipelines.cli.main import app, main
from rlad.config.reference import reference
from rlad.ledger import Ledger

ROOT = Path(__file__).parents[4]
SMOKE = "configs/smoke_cpu.yaml"
OFFLINE = "configs/offline_kk_cpu.yaml"


@dataclass(frozen=True)
class Ended:
    status: int
    stdout: str
    stderr: str


class Rlad(Protocol):
    def __call__(self, *arguments: str) -> Ended: ...


@pytest.fixture
def rlad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rlad:
    """Run `main()` in this process, because a new interpreter for each call would import everything again."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str) -> Ended:
        with (
            mock.patch.dict(os.environ),
            mock.patch.object(sys, "argv", ["rlad", *arguments]),
            pytest.raises(SystemExit) as end,
        ):
            main()
        captured = capsys.readouterr()
        return Ended(
            end.value.code if isinstance(end.value.code, int) else int(end.value.code is not None),
            captured.out,
            captured.err,
        )

    return call


def in_a_process(*arguments: str) -> Ended:
    command = [sys.executable, "-m", "pipelines", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    return Ended(result.returncode, result.stdout, result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "configs/nowhere.yaml"), "no configuration file at configs/nowhere.yaml"),
        (("run", SMOKE, "objective.alhpa=0.3"), "did you mean `alpha`"),
        (("run", SMOKE, "student.path=/nowhere", "--run-dir", "{tmp}/run"), "/nowhere"),
        (("plan", SMOKE, "rollout.workers=99"), "too few CPUs"),
        (("simulate", SMOKE), "set --device for runs on GPUs, or the measured --token-ms"),
        (
            ("compare", "configs/ablation_alpha_cpu.yaml", "--methods", "alpha-2"),
            "unknown method alpha-2; expected one of grpo, alpha-0.1",
        ),
        (("compare", SMOKE), "base: required"),
        (("eval", "{tmp}", "--config", "configs/eval_math.yaml", "--sets", "aime"), "no evaluation set aime"),
        (("eval", "{tmp}", "--config", SMOKE, "--output", "README.md"), "README.md is a file"),
        (("ledger", "{tmp}"), "no ledger at"),
        (("report", "{tmp}"), "no run at"),
        (("pretrain", "chess"), "chess"),
        (("offline", OFFLINE, "--run-dir", "{tmp}/run"), "`rlad offline` was removed: use `rlad run`"),
        (
            ("deploy", "render", SMOKE, "--out", "{tmp}", "--max-workers", "rollout"),
            "for example rollout=8; got 'rollout'",
        ),
        (
            ("deploy", "render", SMOKE, "--out", "{tmp}", "--memory", "rollouts=4"),
            "unknown pool rollouts: the pools are rollout, teacher",
        ),
        (("deploy", "render", SMOKE, "--out", "README.md"), "README.md is a file"),
        (("registry", "promote", "kk-student@2", "--registry", "{tmp}"), "no model 'kk-student' in the registry at"),
        (("submit", SMOKE, "--working-dir", "{tmp}/nowhere"), "nowhere does not exist or is not a directory"),
        (("submit", SMOKE, "--env", "HF_TOKEN=x"), "HF_TOKEN looks like a secret"),
        (("submit", SMOKE, "--address", "127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1"),
        (("teacher", "deploy", SMOKE), "Expected the file of a teacher service"),
        (
            ("teacher", "deploy", "configs/teachers/kk_smoke_cpu.yaml", "max_replica=2"),
            "max_replica: unknown key; did you mean `max_replicas`",
        ),
    ],
)
def test_error_is_one_message_and_status_1(
    rlad: Rlad, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = rlad(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.status == 1
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_unreachable_address_is_an_error_without_traceback(tmp_path: Path) -> None:
    result = in_a_process(
        "run", SMOKE, "student.path=" + str(tmp_path), "--address", "127.0.0.1:1", "--run-dir", str(tmp_path / "run")
    )
    assert result.status == 1
    assert "Traceback" not in result.stderr


def test_existing_run_is_refused_before_the_driver_and_its_libraries_are_imported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: other\n")
    program = """
import sys
from pipelines.cli.main import main
try:
    main()
finally:
    print(sorted({"torch", "transformers"} & sys.modules.keys()))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, "run", SMOKE, "--run-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "--resume" in ended.stderr
    assert ended.stdout == "[]\n"


def test_ledger_status_is_1_after_a_duplicate(rlad: Rlad, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.issue(0, [("a", "prompt")])
    ledger.record_sampled("a", 0)
    ledger.record_scored("a", 0)
    ledger.record_claimed(["a"])
    ledger.record_trained(0, ["a"])
    assert rlad("ledger", str(tmp_path)).status == 0
    ledger.record_trained(0, ["a"])
    result = rlad("ledger", str(tmp_path))
    assert result.status == 1
    assert "duplicated" in result.stdout


def test_deploy_render_writes_manifests(rlad: Rlad, tmp_path: Path) -> None:
    result = rlad(
        "deploy",
        "render",
        SMOKE,
        "training.steps=9",
        "--out",
        str(tmp_path / "manifests"),
        "--kind",
        "rayjob",
        "--namespace",
        "training",
    )
    assert result.status == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "manifests").iterdir()) == [
        "config.yaml",
        "kustomization.yaml",
        "networkpolicy.yaml",
        "rayjob.yaml",
    ]
    shipped = yaml.safe_load(
        yaml.safe_load((tmp_path / "manifests" / "config.yaml").read_text())["data"]["config.yaml"]
    )
    assert shipped["training"]["steps"] == 9
    assert yaml.safe_load((tmp_path / "manifests" / "rayjob.yaml").read_text())["metadata"]["namespace"] == "training"


@pytest.mark.parametrize(
    ("ending", "status", "message"),
    [
        (
            "os.kill(os.getpid(), signal.SIGINT); signal.pause()",
            130,
            "interrupted: checkpoints are kept",
        ),
        ("sys.exit(signal.SIGTERM)", 143, "interrupted: checkpoints are kept"),
        ("raise typer.Exit(130)", 130, ""),
        ("import rlad.errors; raise rlad.errors.StopRequestedError('after 3 steps')", 90, "stopped: after 3 steps"),
    ],
)
def test_interrupted_command_explains_how_to_continue(ending: str, status: int, message: str) -> None:
    program = f"""
import os, signal, sys, typer
from pipelines.cli import main as cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # the test runner may ignore SIGINT
@cli.app.command()
def end():
    {ending}
cli.main()
"""
    result = subprocess.run(
        [sys.executable, "-c", program, "end"], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert result.returncode == status
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr
    assert bool(result.stderr) == bool(message)


def commands(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command below a group with its path."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_parameter_has_help(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help, path
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


@pytest.mark.parametrize("path", [(), *COMMANDS], ids=lambda path: " ".join(path) or "rlad")
def test_help_fits_80_columns_without_cut_words(path: tuple[str, ...]) -> None:
    result = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    if path[:1] != ("schedule",):  # its database URL is longer than a column of help text
        assert "…" not in result.stdout


def test_help_names_every_command() -> None:
    text = in_a_process("--help").stdout
    shown = [path[0] for path, command in COMMANDS.items() if len(path) == 1 and not command.hidden]
    assert [name for name in shown if name not in text] == []


def test_configuration_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), "run `make reference`"
