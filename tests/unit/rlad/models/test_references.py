"""Syntax of model references."""

from __future__ import annotations

import pytest

from rlad.errors import PlanError, RladError
from rlad.models.references import ReferenceKind, parse_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision"),
    [
        ("models/mine/student", ReferenceKind.DIRECTORY, "models/mine/student", None),
        ("./mine", ReferenceKind.DIRECTORY, "./mine", None),
        ("../mine", ReferenceKind.DIRECTORY, "../mine", None),
        ("/models/mine@2", ReferenceKind.DIRECTORY, "/models/mine@2", None),
        ("~/mine", ReferenceKind.DIRECTORY, "~/mine", None),
        ("mine", ReferenceKind.DIRECTORY, "mine", None),
        ("Qwen/Qwen3-0.6B", ReferenceKind.HUB, "Qwen/Qwen3-0.6B", "main"),
        ("Qwen/Qwen3-0.6B@v1.0", ReferenceKind.HUB, "Qwen/Qwen3-0.6B", "v1.0"),
        ("Qwen/Qwen3-0.6B@refs/pr/7", ReferenceKind.HUB, "Qwen/Qwen3-0.6B", "refs/pr/7"),
        (f"Qwen/Qwen3-0.6B@{COMMIT}", ReferenceKind.HUB, "Qwen/Qwen3-0.6B", COMMIT),
        ("s3://bucket/a/b", ReferenceKind.STORE, "s3://bucket/a/b", None),
        ("gs://bucket/a?anonymous=true#0123", ReferenceKind.STORE, "gs://bucket/a?anonymous=true", "0123"),
        ("registry:kk-student", ReferenceKind.REGISTRY, "kk-student", "latest"),
        ("registry:kk-student@production", ReferenceKind.REGISTRY, "kk-student", "production"),
        ("registry:kk-student@3", ReferenceKind.REGISTRY, "kk-student", "3"),
        ("starter:kk/student", ReferenceKind.STARTER, "kk/student", None),
    ],
)
def test_every_form_is_recognised(text: str, kind: ReferenceKind, name: str, revision: str | None) -> None:
    reference = parse_model(text)
    assert (reference.kind, reference.name, reference.revision) == (kind, name, revision)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a model is required"),
        ("Qwen/Qwen3-0.6B@", "expected a branch, tag or commit after @"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", r"named OWNER/NAME\[@REVISION\], for example Qwen/Qwen3-0.6B;"),
        ("hf://Qwen/Qwen3-0.6B", "for example Qwen/Qwen3-0.6B;"),
        ("ftp://host/model", "expected a model directory"),
        ("s3://bucket", "with the folder of the model"),
        ("s3://key:secret@bucket/model", "must not contain credentials"),
        ("registry:Kk Student@3", "invalid name for a model"),
        ("registry:kk-student@", "expected a version or an alias after @"),
        ("registry:kk-student@3?at=s3://bucket/registry", "unknown option 'at'"),
    ],
)
def test_a_text_that_is_no_reference_is_refused_with_the_right_form(text: str, message: str) -> None:
    with pytest.raises(RladError, match=message):
        parse_model(text)


@pytest.mark.parametrize(
    ("text", "revision", "expected"),
    [
        ("Qwen/Qwen3-0.6B", COMMIT, f"Qwen/Qwen3-0.6B@{COMMIT}"),
        ("Qwen/Qwen3-0.6B@main", COMMIT, f"Qwen/Qwen3-0.6B@{COMMIT}"),
        ("s3://bucket/a?region=eu", "0123", "s3://bucket/a?region=eu#0123"),
        ("registry:kk@production", "3", "registry:kk@3"),
        ("registry:kk@best?in=s3://b/r%3Fregion%3Deu", "3", "registry:kk@3?in=s3://b/r%3Fregion%3Deu"),
    ],
)
def test_a_reference_at_a_version_names_that_version(text: str, revision: str, expected: str) -> None:
    pinned = parse_model(text).at(revision)
    assert pinned == expected
    again = parse_model(pinned)
    assert (again.name, again.revision, again.registry) == (
        parse_model(text).name,
        revision,
        parse_model(text).registry,
    )


def test_a_directory_has_no_versions() -> None:
    with pytest.raises(PlanError, match="has no revisions"):
        parse_model("/models/mine").at("3")
