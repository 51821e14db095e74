"""Models of a run: their versions, the record in the run directory, and changes since the run was started."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.resolution.models import ModelFiles, resolve_models
from pipelines.run.directory import RunDirectory
from rlad.config import RunConfig, load_run_config
from rlad.errors import ConfigError, ModelUnreachableError
from rlad.models.locations import PinnedModel

SMOKE = Path(__file__).parents[4] / "configs" / "smoke_cpu.yaml"
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of a model whose branch `main` is at `OLD`; the hub is offline, as in all tests."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--team--tiny"
    for commit in (OLD, NEW):
        (repository / "snapshots" / commit).mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (repository / "snapshots" / commit / name).write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(OLD)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def configured(tmp_path: Path, student: str) -> RunConfig:
    teacher = tmp_path / "teacher"
    teacher.mkdir(exist_ok=True)
    (teacher / "config.json").write_text("{}")
    return load_run_config(SMOKE, [f"student.path={student}", f"teacher.path={teacher}"])


def test_a_branch_is_pinned_to_its_commit_for_all_nodes(hub_cache: Path, tmp_path: Path) -> None:
    models = resolve_models(configured(tmp_path, "team/tiny"))
    assert models.student == PinnedModel(reference="team/tiny", location=f"team/tiny@{OLD}", version=OLD)
    assert models.by_setting() == {
        "student.path": models.student,
        "teacher.path": PinnedModel(
            reference=str(tmp_path / "teacher"), location=str(tmp_path / "teacher"), version=None
        ),
    }


def test_a_reward_model_is_loaded_from_its_location(hub_cache: Path, tmp_path: Path) -> None:
    verifier = "{name: reward_model, path: team/tiny}"
    config = load_run_config(
        SMOKE,
        [
            *(f"{model}.path={configured(tmp_path, 'team/tiny').teacher.path}" for model in ("student", "teacher")),
            f"verifiers.chat={verifier}",
        ],
    )
    verifiers = resolve_models(config).verifiers(config)
    assert verifiers["chat"].path == f"team/tiny@{OLD}"
    assert verifiers["knights_knaves"] == config.verifiers["knights_knaves"]


def test_a_branch_that_has_moved_is_refused_and_its_former_commit_continues_the_run(
    hub_cache: Path, tmp_path: Path
) -> None:
    config, run = configured(tmp_path, "team/tiny"), RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        run.record_models(resolve_models(config, run.read_models()).by_setting())
        run.ledger.write_text("started")
    (hub_cache / "refs" / "main").write_text(NEW)
    with run.hold(config, resume=True), pytest.raises(ConfigError) as refused:
        resolve_models(config, run.read_models())
    message = str(refused.value)
    assert f"was at {OLD}, and is at {NEW} now; continue with student.path=team/tiny@{OLD}" in message
    pinned = configured(tmp_path, f"team/tiny@{OLD}")
    with run.hold(pinned, resume=True):
        assert resolve_models(pinned, run.read_models()).student.location == f"team/tiny@{OLD}"
    with (
        pytest.raises(ConfigError, match="other settings of student"),
        run.hold(configured(tmp_path, f"team/tiny@{NEW}"), resume=True),
    ):
        pass


def test_a_recorded_commit_is_used_where_the_hub_cannot_be_reached(hub_cache: Path, tmp_path: Path) -> None:
    config, run = configured(tmp_path, "team/tiny"), RunDirectory(tmp_path / "run")
    with run.hold(config, resume=False):
        run.record_models(resolve_models(config).by_setting())
        (hub_cache / "refs" / "main").unlink()
        assert resolve_models(config, run.read_models()).student.version == OLD
        with pytest.raises(ModelUnreachableError):
            resolve_models(config)


def test_models_are_looked_up_once(hub_cache: Path) -> None:
    files = ModelFiles()
    directory = files.directory("team/tiny")
    (hub_cache / "refs" / "main").write_text(NEW)
    assert files.directory("team/tiny") == directory
    with pytest.raises(ModelUnreachableError) as first:
        files.directory("team/other")
    with pytest.raises(ModelUnreachableError) as second:
        files.directory("team/other")
    assert first.value is second.value
    assert (files.is_absent("team/tiny"), files.is_absent("team/other"), files.is_absent("nothing")) == (
        False,
        True,
        False,
    )
