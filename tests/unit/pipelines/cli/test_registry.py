"""`rlad registry`, from registering a run to fetching and retiring versions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.run.cost import write_cost
from pipelines.run.directory import RunDirectory
from pipelines.run.registration import register_run
from pipelines.run.result import run_id_of
from rlad.config import RunConfig, load_run_config
from rlad.config.monitoring.cost import CostConfig
from rlad.config.prompts import PromptFile
from rlad.data.prompts import load_prompts
from rlad.data.records import dataset_fingerprint
from rlad.errors import AliasConflictError, DataError, ModelNotFoundError, RegistryError, RladError, RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.monitoring.cost import ReservedHours
from rlad.registry.registry import ModelRegistry

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"


def evaluation(solved: int) -> EvaluationSummary:
    return summarise(
        [
            PromptResult(
                prompt_id=f"p{index}",
                groups=("2",),
                rewards=(float(index < solved),),
                response_tokens=(9,),
                num_truncated=0,
            )
            for index in range(10)
        ]
    )


def finished_run(path: Path, config: RunConfig, *, solved: int, weights: bytes = b"weights") -> RunDirectory:
    """Write the files of a finished run."""
    run = RunDirectory(path)
    with run.hold(config, resume=False):
        pass
    lines = [{"step": step, **evaluation(count).as_dict()} for step, count in ((0, 2), (config.training.steps, solved))]
    run.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.metrics.write_text('{"step": 1, "reward/mean": 0.25}\n{"step": 2, "reward/mean": 0.5, "note": "no number"}\n')
    run.export.mkdir()
    (run.export / "config.json").write_text("{}")
    (run.export / "model.safetensors").write_bytes(weights)
    (run.export / "README.md").write_text("card")
    return run


@pytest.fixture
def config() -> RunConfig:
    return load_run_config(SMOKE, ["teacher.path=/models/teacher-of-another-machine"])


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> RunDirectory:
    return finished_run(tmp_path / "first", config, solved=6)


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Empty registry, set as the default in the environment."""
    monkeypatch.setenv("RLAD_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("COLUMNS", "200")
    return str(tmp_path / "registry")


def rlad(*arguments: object) -> str:
    """Run `rlad registry ...` and return its output, or raise its error."""
    result = CliRunner().invoke(app, ["registry", *map(str, arguments)])
    if isinstance(result.exception, RladError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def rlad_json(*arguments: object) -> Any:
    return json.loads(rlad(*arguments, "--json"))


def test_finished_run_is_registered_once_with_its_lineage(config: RunConfig, run: RunDirectory, uri: str) -> None:
    registry = ModelRegistry.open(uri)
    version = register_run(registry, "kk-student", run)
    assert register_run(registry, "kk-student", run) == version
    lineage = version.lineage
    assert (lineage.run_id, lineage.run_dir) == (run_id_of(config, run), str(run.path))
    assert lineage.config_sha256 == hashlib.sha256(run.config.read_bytes()).hexdigest()
    assert (lineage.base_model, lineage.parent, lineage.steps) == (config.student.path, None, config.training.steps)
    assert lineage.teachers == {"teacher": "/models/teacher-of-another-machine"}
    prompts = load_prompts(config.prompts)
    assert (lineage.prompts_fingerprint, lineage.num_prompts) == (dataset_fingerprint(prompts), len(prompts))
    assert version.evaluation == evaluation(6)
    assert version.metrics == {"step": 2.0, "reward/mean": 0.5}
    assert version.config == config.model_dump(mode="json")
    assert [file.path for file in version.files] == ["README.md", "config.json", "model.safetensors"]


def test_version_shows_the_cost_of_its_run(run: RunDirectory, uri: str) -> None:
    write_cost(run, CostConfig(price_per_cpu_hour=0.5), {"rollout": ReservedHours(cpu=3)}, attempts=1, warned_of={})
    register_run(ModelRegistry.open(uri), "kk-student", run)
    assert "cost of the run  3.00 CPU-hours, 1.50 USD" in rlad("show", "kk-student")
    assert rlad_json("show", "kk-student")["lineage"]["cost"]["amount"] == 1.5


def test_local_teacher_is_recorded_with_its_fingerprint(make_model: Any, tmp_path: Path, uri: str) -> None:
    teachers = {}
    for seed in (0, 1):
        path = make_model(seed=seed)
        run = finished_run(tmp_path / f"run-{seed}", load_run_config(SMOKE, [f"teacher.path={path}"]), solved=6)
        recorded = register_run(ModelRegistry.open(uri), "kk-student", run).lineage.teachers["teacher"]
        assert recorded.startswith(f"{path} (")
        teachers[seed] = recorded.removeprefix(f"{path} ")
    assert teachers[0] != teachers[1]


def test_unfinished_run_is_not_registered(config: RunConfig, run: RunDirectory, tmp_path: Path, uri: str) -> None:
    run.evaluations.write_text(run.evaluations.read_text().splitlines(keepends=True)[0])
    with pytest.raises(RunDirectoryError, match=r"is not finished; resume it with --resume"):
        rlad("add", "kk-student", run.path)
    with pytest.raises(RunDirectoryError, match="no run at"):
        rlad("add", "kk-student", tmp_path / "nowhere")
    deleted = PromptFile(source="file", path=str(tmp_path / "prompts.jsonl"))
    gone = finished_run(tmp_path / "gone", config.model_copy(update={"prompts": deleted}), solved=6)
    with pytest.raises(DataError, match="no prompt file"):
        rlad("add", "kk-student", gone.path)
    assert ModelRegistry.open(uri).names() == []


def test_life_cycle_of_a_model_on_the_command_line(
    config: RunConfig, run: RunDirectory, tmp_path: Path, uri: str
) -> None:
    assert "no models in the registry" in rlad("list")
    assert rlad_json("add", "kk-student", run.path)["reference"] == "kk-student@1"
    assert "version 1" in rlad("promote", "kk-student@1", "--reason", "the first")
    tuned = config.model_copy(update={"seed": 9})
    second = finished_run(tmp_path / "second", tuned, solved=9, weights=b"better")
    assert (
        rlad("add", "kk-student", second.path, "--parent", "kk-student@production")
        == f"kk-student@2 in {uri}: 90.0% on 10 prompts\n"
    )
    assert rlad_json("promote", "kk-student@2") == {
        "name": "kk-student",
        "alias": "production",
        "previous": 1,
        "version": 2,
    }
    assert rlad_json("promote", "kk-student@2", "--alias", "best", "--expected", "none")["previous"] is None

    rows = rlad_json("list")
    assert [(row["reference"], row["aliases"], row["accuracy"], row["parent"]) for row in rows] == [
        ("kk-student@2", ["production", "best"], 0.9, "kk-student@1"),
        ("kk-student@1", [], 0.6, None),
    ]
    table = rlad("list", "kk-student")
    for text in ("production", "best", "90.0% (60%-98%)"):
        assert text in table

    shown = rlad_json("show", "kk-student")
    assert (shown["reference"], shown["aliases"]) == ("kk-student@2", {"production": 2, "best": 2})
    assert Path(shown["path"], "model.safetensors").read_bytes() == b"better"
    assert [(change["alias"], change["version"], change["reason"]) for change in shown["history"]] == [
        ("production", 1, "the first"),
        ("production", 2, "by hand"),
        ("best", 2, "by hand"),
    ]
    assert shown["evaluation"]["overall"]["mean"] == 0.9
    page = rlad("show", "kk-student@1")
    for text in (str(run.path), "/models/teacher-of-another-machine", "60.0%", "the first"):
        assert text in page

    found = rlad_json("diff", "kk-student@1", "2")
    assert found["config"] == {"seed": [config.seed, 9]}
    assert found["evaluation"]["all"] == [0.6, 0.9]
    assert found["files"].keys() == {"model.safetensors"}
    assert "seed" in rlad("diff", "kk-student@1", "kk-student@best")
    assert "no differences" in rlad("diff", "kk-student@2", "best")

    copy = Path(rlad("fetch", "kk-student@production", "--into", tmp_path / "models").strip())
    assert (copy / "model.safetensors").read_bytes() == b"better"
    assert (
        rlad("rollback", "kk-student", "--reason", "users complain")
        == "production of kk-student: version 2 -> version 1\n"
    )
    assert rlad_json("retain", "kk-student", "--keep", 1) == {"retired": []}


def test_invalid_arguments_are_reported(run: RunDirectory, uri: str) -> None:
    rlad("add", "kk-student", run.path)
    for arguments, error, message in (
        (("list", "math"), ModelNotFoundError, "no model 'math' in the registry at .*; models: kk-student"),
        (("show", "kk-student@"), RegistryError, "a version or an alias after @"),
        (("show", "kk-student@production"), ModelNotFoundError, "no alias 'production'"),
        (("promote", "kk-student@1", "--expected", "3"), AliasConflictError, "at version 3; it is at no version"),
        (("rollback", "kk-student"), ModelNotFoundError, "no version to roll back to"),
        (("fetch", "../kk@1"), RegistryError, "invalid name for a model"),
        (("list", "--registry", "ftp://host/registry"), RegistryError, "expected a local path"),
    ):
        with pytest.raises(error, match=message):
            rlad(*arguments)
    result = CliRunner().invoke(app, ["registry", "promote", "kk-student@1", "--expected", "three"])
    assert result.exit_code == 2
    assert "requires a version number or" in result.output


def test_commands_work_with_a_registry_on_s3(
    run: RunDirectory, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAD_REGISTRY", s3_uri)
    rlad("add", "kk-student", run.path)
    rlad("promote", "kk-student@1")
    shown = rlad_json("show", "kk-student")
    assert shown["path"] is None
    assert shown["aliases"] == {"production": 1}
    copy = Path(rlad_json("fetch", "kk-student@production", "--into", tmp_path / "models")["path"])
    assert {path.name for path in copy.iterdir()} == {"README.md", "config.json", "model.safetensors"}
