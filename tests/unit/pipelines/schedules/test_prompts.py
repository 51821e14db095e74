"""Prompt refresh: which prompts a run trains on, and that evaluation prompts are not among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.schedules.prompts import RefreshedPrompts, evaluation_fingerprint, refresh_prompts, resolved_source
from pipelines.schedules.records import SeenFile
from rlad.config import EvaluationConfig, PromptFile, PromptMixture, RunConfig
from rlad.config.load import validated
from rlad.config.prompts import files_of
from rlad.data.prompt_files import write_prompt_file
from rlad.data.records import PromptRecord
from rlad.errors import DataError

from .conftest import Site, records


def refreshed(
    site: Site, pattern: str, *, use: str = "all", seen: set[SeenFile] | None = None, held_out: list[str] | None = None
) -> RefreshedPrompts | None:
    settings = site.settings(prompts={"pattern": pattern, "use": use})
    return refresh_prompts(
        settings, validated(RunConfig, settings.run, where="run"), records(held_out or []), seen or set()
    )


def ids(found: RefreshedPrompts | None) -> list[str]:
    assert found is not None
    return [record.id for record in found.records]


@pytest.fixture
def files(site: Site) -> Path:
    """Two prompt files, one of them in a subfolder."""
    folder = site.folder / "in"
    (folder / "may").mkdir(parents=True)
    write_prompt_file(records(["a", "b"]), folder / "1.jsonl")
    write_prompt_file(records(["b", "c"]), folder / "may" / "2.jsonl")
    return folder


def test_pattern_is_relative_to_the_working_directory_or_absolute(site: Site, files: Path) -> None:
    assert ids(refreshed(site, "in/*.jsonl")) == ["a", "b"]
    assert ids(refreshed(site, str(files / "*.jsonl"))) == ["a", "b"]
    assert ids(refreshed(site, "in/**/*.jsonl")) == ["a", "b", "c"]


def test_different_prompts_with_one_id_are_refused(site: Site, files: Path) -> None:
    write_prompt_file(
        [PromptRecord(id="a", prompt="another", task="knights_knaves", answer="T")], files / "may" / "3.jsonl"
    )
    with pytest.raises(DataError, match=r"3\.jsonl: prompt id 'a' belongs to a different prompt in .*1\.jsonl"):
        refreshed(site, "in/**/*.jsonl")


def test_file_with_changed_content_is_new_again(site: Site, files: Path) -> None:
    first = refreshed(site, "in/**/*.jsonl", use="new")
    assert first is not None
    seen = set(first.new_files)
    assert refreshed(site, "in/**/*.jsonl", use="new", seen=seen) is None
    write_prompt_file(records(["a", "b", "d"]), files / "1.jsonl")
    again = refreshed(site, "in/**/*.jsonl", use="new", seen=seen)
    assert ids(again) == ["a", "b", "d"]
    everything = refreshed(site, "in/**/*.jsonl", seen=seen)
    assert everything is not None
    assert (len(everything.files), len(everything.new_files)) == (2, 1)


def test_evaluation_prompts_are_left_out_by_content(site: Site, files: Path) -> None:
    write_prompt_file(
        [PromptRecord(id="renamed", prompt="A:e7;", task="knights_knaves", answer="T")], files / "3.jsonl"
    )
    found = refreshed(site, "in/*.jsonl", held_out=["b", "e7"])
    assert found is not None
    assert (ids(found), found.left_out) == (["a"], 2)


def test_no_prompts_left_returns_none(site: Site, files: Path) -> None:
    assert refreshed(site, "out/*.jsonl") is None
    assert refreshed(site, "in/*.jsonl", held_out=["a", "b"]) is None


def test_unreadable_file_is_named_in_the_error(site: Site, files: Path) -> None:
    (files / "3.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"3\.jsonl, line 1"):
        refreshed(site, "in/*.jsonl")


def test_evaluation_fingerprint_covers_prompts_and_sampling_but_not_grouping() -> None:
    settings = EvaluationConfig(prompts=PromptFile(path="x.jsonl"))
    same = evaluation_fingerprint(records(["a"]), settings)
    assert (
        evaluation_fingerprint(
            records(["a"]), settings.model_copy(update={"group_by": "people", "prompts": PromptFile(path="y.jsonl")})
        )
        == same
    )
    assert evaluation_fingerprint(records(["b"]), settings) != same
    assert evaluation_fingerprint(records(["a"]), settings.model_copy(update={"samples": 2})) != same


def test_paths_of_a_mixture_are_resolved_against_the_working_directory() -> None:
    parts = {
        name: {"prompts": {"source": "file", "path": path}}
        for name, path in (("near", "data/p.jsonl"), ("far", "s3://bucket/p.jsonl"), ("root", "/p.jsonl"))
    }
    found = resolved_source(PromptMixture.model_validate({"parts": parts}), "/project")
    assert {place: file.path for place, file in files_of(found).items()} == {
        "parts.near.prompts": "/project/data/p.jsonl",
        "parts.far.prompts": "s3://bucket/p.jsonl",
        "parts.root.prompts": "/p.jsonl",
    }


def test_evaluation_prompts_are_held_out_under_other_ids_and_whitespace(site: Site, files: Path) -> None:
    [evaluation] = records(["a"])
    assert isinstance(evaluation.prompt, str)
    same = PromptRecord(id="x", prompt=f" {evaluation.prompt}\n", task="knights_knaves", answer="T")
    write_prompt_file([same, *records(["d"])], files / "4.jsonl")
    assert ids(refreshed(site, "in/4.jsonl", held_out=["a"])) == ["d"]
