"""Anything that comes from a file or a model ends in a result or in an error of rlad, never in another exception."""

from __future__ import annotations

import copy
import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.config import load_evaluation_suite, load_run_config
from rlad.config.comparison import load_comparison
from rlad.data.prompt_files import read_prompt_file
from rlad.data.trace_files import MANIFEST as TRACES
from rlad.data.trace_files import TraceManifest
from rlad.errors import ConfigError, ContractError, CorruptFileError, DataError, RegistryError
from rlad.integrity.manifest import MANIFEST, verify, write_manifest
from rlad.integrity.seals import SEALS, Seals
from rlad.ledger import Ledger
from rlad.registry.changes import LogEntry
from rlad.registry.versions import ModelVersion, from_json
from rlad.teacher.wire_format import scores_from_bytes
from rlad.verifiers import build_verifier

CONFIGS = Path(__file__).parents[3] / "configs"
SMOKE: dict[str, Any] = yaml.safe_load((CONFIGS / "smoke_cpu.yaml").read_text())
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["null", "1e400", "${", "${name}", "${a.b}", "${oc.env:NOWHERE}", "${oc.decode:}", "???", "\x00", "starter:"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "path", "source", "a.b", ""]) | st.text(max_size=4), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@contextmanager
def file_with(content: str | bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
        yield path


def places(tree: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the places of all settings in nested mappings."""
    found = [place] if place else []
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += places(value, (*place, key))
    return found


@few
@given(st.sampled_from(places(SMOKE)), VALUES, st.booleans())
def test_configuration_with_any_value_anywhere(place: tuple[str, ...], value: Any, is_removed: bool) -> None:
    changed = copy.deepcopy(SMOKE)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    if is_removed:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    with file_with(yaml.safe_dump(changed, allow_unicode=True), "run.yaml") as path:
        for load in (load_run_config, load_evaluation_suite):
            try:
                load(path)
            except ConfigError:
                continue


@few
@given(
    st.binary(max_size=60)
    | st.text(max_size=60)
    | st.builds(json.dumps, VALUES)
    | st.sampled_from(
        ["- a\n- b\n", "a: &x [*x]", "a: !!python/object:os.system x", "a: 1\na: 2\n", "? [a]\n: b\n", "methods: {}"]
    )
)
def test_configuration_of_any_text(content: str | bytes) -> None:
    with file_with(content, "run.yaml") as path:
        for load in (load_run_config, load_evaluation_suite, load_comparison):
            try:
                load(path)
            except ConfigError:
                continue


@few
@given(st.lists(st.text(max_size=12) | st.builds("{}={}".format, st.text(max_size=6), st.text(max_size=6)), max_size=2))
def test_any_overrides(overrides: list[str]) -> None:
    try:
        load_run_config(CONFIGS / "smoke_cpu.yaml", overrides)
    except ConfigError:
        return


ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(
            ["id", "prompt", "question", "answer", "task", "messages", "problem", "solution", "metadata", "x"]
        ),
        VALUES,
        max_size=4,
    ),
    max_size=3,
)


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@few
@given(
    st.binary(max_size=80) | st.builds(_lines, ROWS) | st.builds(lambda rows: json.dumps(rows).encode(), ROWS),
    st.sampled_from(
        ["p.jsonl", "p.json", "p.csv", "p.tsv", "p.parquet", "p.arrow", "p.jsonl.gz", "p.jsonl.zst", "p.jsonl.xz"]
    ),
    st.booleans(),
)
def test_prompt_file_of_any_content(content: bytes, name: str, is_packed: bool) -> None:
    packed = gzip.compress(content)[: -1 if is_packed else None] if name.endswith(".gz") else content
    with file_with(packed, name) as path:
        try:
            read_prompt_file(path)
        except DataError:
            return


ANSWERS = st.lists(
    st.sampled_from(
        [
            "\\boxed{",
            "}",
            "{",
            "1",
            "2",
            "0",
            "/",
            "x",
            "=",
            ",",
            "(",
            "]",
            "-",
            "+",
            "∞",
            "½",
            "π",
            "NaN",
            "\x00",
            "\\frac",
            "\\text{",
            "A",
            "B",
            "knight",
            "knave",
            "<",
            ">",
            "</think>",
            "<answer>",
            "```",
            "π",
            "�",
            "%",
            "°",
        ]
    ),
    max_size=10,
).map("".join)


@pytest.mark.parametrize(
    "settings_of",
    [
        {"name": "math_answer"},
        {"name": "countdown"},
        {"name": "multiple_choice"},
        {"name": "knights_knaves"},
        {"name": "knights_knaves", "form": "compact"},
    ],
    ids=lambda found: "-".join(found.values()),
)
@few
@given(response=ANSWERS | st.text(max_size=30), answer=ANSWERS | st.text(max_size=10))
def test_verifier_of_any_response_and_answer(settings_of: dict[str, str], response: str, answer: str) -> None:
    verifier = build_verifier(settings_of)
    try:
        verifier.verify(response, answer)
    except DataError:
        return


RECORDS = st.binary(max_size=60) | st.builds(lambda value: json.dumps(value).encode(), VALUES)


@few
@given(
    RECORDS
    | st.builds(
        lambda digest, name: f"{digest}  {name}\n".encode(errors="surrogatepass"),
        st.sampled_from(["0" * 64, "g" * 64, ""]),
        st.sampled_from(["a", "../a", "/etc/passwd", "", "b/c", "a\n", MANIFEST]) | st.text(max_size=5),
    )
)
def test_manifest_of_any_content(content: bytes) -> None:
    with file_with(b"x", "a") as path:
        (path.parent / MANIFEST).write_bytes(content)
        with pytest.raises(CorruptFileError):
            verify(path.parent, remedy="")


@few
@given(RECORDS)
def test_records_of_a_run_of_any_content(content: bytes) -> None:
    with file_with(content, SEALS) as path:
        folder = path.parent
        with suppress(CorruptFileError):
            Seals(folder).verify(remedy="")
        path.unlink()
        run = RunDirectory(folder)
        run.config.write_bytes(content)
        with pytest.raises((CorruptFileError, ConfigError)):
            run.read_config()
        run.metrics.write_bytes(content + b"\n")
        with suppress(CorruptFileError):
            read_json_lines(run.metrics)
        run.ledger.write_bytes(content)
        if content:
            with pytest.raises(CorruptFileError):
                Ledger(run.ledger, read_only=True)


@few
@given(RECORDS)
def test_manifests_of_registry_traces_and_teacher_of_any_content(content: bytes) -> None:
    for kind in (ModelVersion, LogEntry):
        with pytest.raises(RegistryError):
            from_json(kind, content, "here")
    with pytest.raises(ContractError):
        scores_from_bytes(content)
    with file_with(content, TRACES) as path:
        write_manifest(path.parent)
        with pytest.raises(CorruptFileError):
            TraceManifest.read(path.parent)
