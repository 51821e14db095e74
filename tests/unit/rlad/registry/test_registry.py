"""The registry keeps its promises on a disk and on an object store: whole versions, one order, aliases that never move unseen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlad.errors import AliasConflictError, ContractError, CorruptModelError, ModelNotFoundError, RegistryError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.registry.change_log import rollback_target
from rlad.registry.registry import ModelRegistry
from rlad.registry.store import open_store
from rlad.registry.versions import AliasChange, Lineage, ModelFile, ModelVersion

NAME = "kk-student"
ROOT = Path(__file__).parents[4]
SETTINGS = {"seed": 1, "objective": {"name": "trrd", "alpha": 0.5}}
LINEAGE = Lineage(
    run_id="nightly-1a2b3c4d",
    run_dir="/runs/nightly",
    config_sha256="c0ffee",
    parent=None,
    base_model="Qwen/Qwen3-0.6B",
    teachers={"teacher": "Qwen/Qwen3-8B"},
    prompts_fingerprint="0123456789abcdef",
    num_prompts=800,
    steps=20,
    rlad_version="0.1.0",
    git_commit=None,
    created_at="2026-01-31T02:00:00+00:00",
)


def evaluation(solved: int = 5) -> EvaluationSummary:
    return summarise(
        [
            PromptResult(
                prompt_id=f"p{index}",
                groups=("2",),
                rewards=(float(index < solved),),
                response_tokens=(3,),
                num_truncated=0,
            )
            for index in range(10)
        ]
    )


def export(directory: Path, weights: bytes = b"weights") -> Path:
    (directory / "adapters").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "adapters" / "notes.txt").write_text("in a folder of its own")
    return directory


def add(registry: ModelRegistry, key: str, model_dir: Path, *, solved: int = 5) -> ModelVersion:
    return registry.add(NAME, model_dir, lineage=LINEAGE, evaluation=evaluation(solved), idempotency_key=key)


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "registry") if request.param == "local" else request.getfixturevalue("s3_uri")


@pytest.fixture
def registry(uri: str) -> ModelRegistry:
    return ModelRegistry.open(uri)


@pytest.fixture
def local(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry.open(str(tmp_path / "registry"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return export(tmp_path / "export")


def write(registry: ModelRegistry, path: str, content: bytes) -> None:
    """Do what the registry never does: overwrite."""
    with registry.store.filesystem.open_output_stream(f"{registry.store.root}/{path}") as file:
        file.write(content)


# --- versions


def test_what_is_added_is_read_back_by_any_process(registry: ModelRegistry, uri: str, model: Path) -> None:
    added = registry.add(
        NAME,
        model,
        lineage=LINEAGE,
        evaluation=evaluation(7),
        metrics={"reward/mean": 0.7},
        config=SETTINGS,
        idempotency_key="nightly-1",
    )
    assert added.reference == "kk-student@1"
    reopened = ModelRegistry.open(uri)
    assert reopened.get(NAME, 1) == added
    assert reopened.versions(NAME) == [added]
    assert reopened.names() == [NAME]
    assert added.evaluation == evaluation(7)
    assert [(file.path, file.bytes) for file in added.files] == [
        ("adapters/notes.txt", 22),
        ("config.json", 2),
        ("model.safetensors", 7),
    ]
    assert added.files[1].sha256 == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    assert added.num_bytes == 31


def test_numbers_go_up_and_a_key_is_added_once(registry: ModelRegistry, model: Path) -> None:
    assert [add(registry, key, model).version for key in ("a", "b", "a", "c", "b")] == [1, 2, 1, 3, 2]
    assert [version.idempotency_key for version in registry.versions(NAME)] == ["a", "b", "c"]


def test_a_version_is_found_by_number_alias_and_as_the_latest(registry: ModelRegistry, model: Path) -> None:
    versions = [add(registry, key, model) for key in "abc"]
    registry.promote(NAME, 2, expected=None, reason="first")
    assert [registry.get(NAME, ref).version for ref in (3, "1", "production", "latest")] == [
        3,
        1,
        2,
        versions[-1].version,
    ]
    with pytest.raises(ModelNotFoundError, match=r"no alias 'best' of kk-student .* there are production \(2\)"):
        registry.get(NAME, "best")
    with pytest.raises(ModelNotFoundError, match="kk-student@4 does not exist .* there are versions 1, 2, 3"):
        registry.get(NAME, 4)
    with pytest.raises(ModelNotFoundError, match="no model 'math' .* there are kk-student"):
        registry.get("math", 1)


def test_an_empty_registry_has_nothing(registry: ModelRegistry) -> None:
    assert registry.names() == []
    assert registry.versions(NAME) == []
    assert registry.aliases(NAME) == {}
    assert registry.history(NAME) == []


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".hidden", "UPPER", "x" * 64, "latest", "kk@1"])
def test_names_that_lead_elsewhere_are_refused(local: ModelRegistry, model: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="is no name for a model"):
        local.add(name, model, lineage=LINEAGE, evaluation=evaluation(), idempotency_key="a")
    assert local.store.entries("") == []


def test_only_models_in_safetensors_form_are_taken(local: ModelRegistry, tmp_path: Path, model: Path) -> None:
    with pytest.raises(RegistryError, match="there is no such directory"):
        add(local, "a", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="holds no model"):
        add(local, "a", tmp_path / "empty")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(RegistryError, match=r"holds pytorch_model\.bin: what may be unpickled is not registered"):
        add(local, "a", model)
    assert local.names() == []


def test_what_is_registered_loads_as_it_is(local: ModelRegistry, make_model: Any, tmp_path: Path) -> None:
    source = make_model()
    version = add(local, "a", source)
    path = local.local_path(version)
    assert path is not None
    original = AutoModelForCausalLM.from_pretrained(source).state_dict()
    for directory in (path, local.fetch(NAME, 1, tmp_path / "cache")):
        loaded = AutoModelForCausalLM.from_pretrained(directory).state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in original.items())
        assert AutoTokenizer.from_pretrained(directory).get_vocab() == AutoTokenizer.from_pretrained(source).get_vocab()


# --- aliases


def test_an_alias_moves_only_from_where_it_was_seen(registry: ModelRegistry, model: Path) -> None:
    for key in "abc":
        add(registry, key, model)
    registry.promote(NAME, 1, expected=None, reason="nothing before")
    with pytest.raises(AliasConflictError, match="production of kk-student .* is at version 1, not at no version"):
        registry.promote(NAME, 2, expected=None, reason="late")
    with pytest.raises(AliasConflictError, match="is at version 1, not at version 3"):
        registry.promote(NAME, 2, expected=3, reason="late")
    registry.promote(NAME, 2, expected=1, reason="better")
    registry.set_alias(NAME, "best", 2, expected=None, reason="best so far")
    registry.promote(NAME, 2, expected=2, reason="is there already")
    assert registry.aliases(NAME) == {"production": 2, "best": 2}
    moves = [(move.sequence, move.alias, move.previous, move.version, move.reason) for move in registry.history(NAME)]
    assert moves == [
        (1, "production", None, 1, "nothing before"),
        (2, "production", 1, 2, "better"),
        (3, "best", None, 2, "best so far"),
    ]


def test_an_alias_leads_to_a_version_and_has_a_name_that_is_no_number(local: ModelRegistry, model: Path) -> None:
    add(local, "a", model)
    with pytest.raises(ModelNotFoundError, match="kk-student@7 does not exist"):
        local.promote(NAME, 7, expected=None, reason="")
    for alias in ("7", "latest", "../up"):
        with pytest.raises(RegistryError, match="is no name for an alias"):
            local.set_alias(NAME, alias, 1, expected=None, reason="")


def test_whoever_comes_second_is_told(registry: ModelRegistry, uri: str, model: Path) -> None:
    """Another process moves the alias after this one has looked and before it writes."""
    for key in "ab":
        add(registry, key, model)

    def overtaken(path: str, content: bytes) -> bool:
        other = ModelRegistry.open(uri)
        if not other.aliases(NAME):
            other.promote(NAME, 2, expected=None, reason="faster")
        return registry.store.create_at(path, content)

    slow = ModelRegistry(store=replace(registry.store, create_at=overtaken))
    with pytest.raises(AliasConflictError, match="is at version 2, not at no version"):
        slow.promote(NAME, 1, expected=None, reason="slower")
    assert [move.reason for move in registry.history(NAME)] == ["faster"]


def test_a_reply_that_got_lost_is_no_conflict(registry: ModelRegistry, model: Path) -> None:
    """The store wrote, its answer was lost, and the client's second attempt was told that the file exists."""

    def answer_lost(path: str, content: bytes) -> bool:
        registry.store.create_at(path, content)
        return registry.store.create_at(path, content)

    unlucky = ModelRegistry(store=replace(registry.store, create_at=answer_lost))
    assert add(unlucky, "a", model).version == 1
    unlucky.promote(NAME, 1, expected=None, reason="once")
    assert registry.aliases(NAME) == {"production": 1}
    assert len(registry.history(NAME)) == 1
    assert len(registry.versions(NAME)) == 1


def test_a_store_without_conditional_writes_is_refused(registry: ModelRegistry, model: Path) -> None:
    def overwrite(path: str, content: bytes) -> bool:
        write(registry, path.removeprefix(f"{registry.store.root}/"), content)
        return True

    if (root := registry.store.local_path("")) is not None:
        root.mkdir()
    careless = ModelRegistry(store=replace(registry.store, create_at=overwrite))
    for _ in range(2):
        with pytest.raises(RegistryError, match="so two writers could take one version number"):
            add(careless, "a", model)
    assert registry.names() == []


def test_rollbacks_go_back_one_version_each(registry: ModelRegistry, model: Path) -> None:
    for key in "abcd":
        add(registry, key, model)
    for version, expected in ((1, None), (2, 1), (3, 2)):
        registry.promote(NAME, version, expected=expected, reason="better")
    assert [registry.rollback(NAME, reason="bad"), registry.rollback(NAME, reason="bad too")] == [2, 1]
    with pytest.raises(ModelNotFoundError, match="no version to roll back to: production is at version 1"):
        registry.rollback(NAME, reason="further")
    registry.promote(NAME, 4, expected=1, reason="mended")
    assert registry.rollback(NAME, reason="bad again") == 1
    assert [(move.kind, move.previous, move.version) for move in registry.history(NAME)][3:] == [
        ("rollback", 3, 2),
        ("rollback", 2, 1),
        ("set", 1, 4),
        ("rollback", 4, 1),
    ]


@pytest.mark.parametrize(
    ("moves", "retired", "target"),
    [
        ([], [], None),
        ([("set", 1)], [], None),
        ([("set", 1), ("set", 2), ("set", 1)], [], 2),
        ([("set", 1), ("set", 2), ("set", 3)], [2], 1),
        ([("set", 1), ("set", 2), ("set", 3), ("rollback", 1)], [2], None),
        ([("set", 1), ("set", 2), ("rollback", 1), ("set", 3), ("set", 4)], [], 3),
    ],
)
def test_where_a_rollback_leads(moves: list[Any], retired: list[int], target: int | None) -> None:
    fixed: dict[str, Any] = {"alias": "production", "previous": None, "reason": "", "by": "", "at": ""}
    changes = [
        AliasChange(sequence=index, kind=kind, version=version, **fixed) for index, (kind, version) in enumerate(moves)
    ]
    assert rollback_target(changes, retired) == target


# --- retention


def test_retention_spares_the_newest_the_aliased_and_the_way_back(registry: ModelRegistry, model: Path) -> None:
    versions = [add(registry, key, model) for key in "abcdefg"]
    for version, expected in ((2, None), (3, 2)):
        registry.promote(NAME, version, expected=expected, reason="better")
    registry.set_alias(NAME, "best", 5, expected=None, reason="best")
    assert registry.retain(NAME, keep=1) == [1, 4, 6]
    assert [version.version for version in registry.versions(NAME)] == [2, 3, 5, 7]
    assert registry.retain(NAME, keep=1) == []
    for version in versions:
        assert bool(registry.store.entries(version.directory)) == (version.version in (2, 3, 5, 7))
    with pytest.raises(ModelNotFoundError, match="kk-student@4 was retired .* there are versions 2, 3, 5, 7"):
        registry.get(NAME, 4)
    with pytest.raises(ModelNotFoundError, match="retired"):
        registry.promote(NAME, 4, expected=3, reason="too late")
    with pytest.raises(RegistryError, match=r"'d' was registered as kk-student@4 .* retired since"):
        add(registry, "d", model)
    assert add(registry, "h", model).version == 8
    assert registry.rollback(NAME, reason="bad") == 2


def test_numbers_of_retired_versions_are_not_given_again(local: ModelRegistry, model: Path) -> None:
    add(local, "a", model)
    add(local, "b", model)
    local.promote(NAME, 1, expected=None, reason="")
    local.retain(NAME, keep=1)
    add(local, "c", model)
    assert local.retain(NAME, keep=1) == [2]
    assert add(local, "d", model).version == 4


def test_a_promotion_during_retention_is_not_missed(registry: ModelRegistry, uri: str, model: Path) -> None:
    """Retention has found version 1 unaliased; before it can say so, somebody promotes it."""
    for key in "abc":
        add(registry, key, model)

    def overtaken(path: str, content: bytes) -> bool:
        other = ModelRegistry.open(uri)
        if not other.aliases(NAME):
            other.promote(NAME, 1, expected=None, reason="just now")
        return registry.store.create_at(path, content)

    slow = ModelRegistry(store=replace(registry.store, create_at=overtaken))
    assert slow.retain(NAME, keep=1) == [2]
    assert registry.get(NAME, "production").version == 1
    assert registry.store.entries(registry.get(NAME, 1).directory)


def test_a_retirement_during_promotion_is_not_missed(registry: ModelRegistry, uri: str, model: Path) -> None:
    for key in "abc":
        add(registry, key, model)

    def overtaken(path: str, content: bytes) -> bool:
        ModelRegistry.open(uri).retain(NAME, keep=1)
        return registry.store.create_at(path, content)

    slow = ModelRegistry(store=replace(registry.store, create_at=overtaken))
    with pytest.raises(ModelNotFoundError, match="kk-student@1 was retired"):
        slow.promote(NAME, 1, expected=None, reason="too late")
    assert registry.aliases(NAME) == {}


def test_a_retention_that_was_killed_is_finished_by_the_next(local: ModelRegistry, model: Path) -> None:
    first, _ = add(local, "a", model), add(local, "b", model)
    program = f"""
import os, signal
from dataclasses import replace
from rlad.registry.registry import ModelRegistry
registry = ModelRegistry.open({local.uri!r})
def record_then_die(path, content):
    registry.store.create_at(path, content)
    os.kill(os.getpid(), signal.SIGKILL)
ModelRegistry(store=replace(registry.store, create_at=record_then_die)).retain({NAME!r}, keep=1)
"""
    assert run_program(program).returncode == -signal.SIGKILL
    assert [version.version for version in local.versions(NAME)] == [2]  # half deleted is not a version
    assert local.store.entries(first.directory)
    assert local.retain(NAME, keep=1) == []
    assert not local.store.entries(first.directory)


# --- crashes and corruption


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_a_writer_killed_before_its_manifest_leaves_no_version(registry: ModelRegistry, uri: str, model: Path) -> None:
    lineage, summary = (
        json.dumps({field: getattr(LINEAGE, field) for field in LINEAGE.__slots__}),
        json.dumps(evaluation().as_dict()),
    )
    program = f"""
import json, os, signal
from dataclasses import replace
from pathlib import Path
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.registry.versions import Lineage
from rlad.registry.registry import ModelRegistry
registry = ModelRegistry.open({uri!r})
def die_before_the_manifest(path, content):
    if "/versions/" in path:
        os.kill(os.getpid(), signal.SIGKILL)
    return registry.store.create_at(path, content)
lineage, evaluation = Lineage(**json.loads({lineage!r})), EvaluationSummary.from_dict(json.loads({summary!r}))
ModelRegistry(store=replace(registry.store, create_at=die_before_the_manifest)).add(
    {NAME!r}, Path({str(model)!r}), lineage=lineage, evaluation=evaluation, idempotency_key="a")
"""
    assert run_program(program).returncode == -signal.SIGKILL
    assert registry.versions(NAME) == []
    assert registry.names() == []
    (orphan,) = registry.store.entries(f"{NAME}/models")
    assert {entry.name for entry in registry.store.entries(f"{NAME}/models/{orphan.name}")} >= {
        "config.json",
        "model.safetensors",
    }
    again = add(registry, "a", model)
    assert again.version == 1
    registry.retain(NAME, keep=1)
    assert registry.store.entries(
        f"{NAME}/models/{orphan.name}"
    )  # for all that anybody knows, its writer is still at it
    if (path := registry.store.local_path(f"{NAME}/models/{orphan.name}")) is not None:
        three_days_ago = time.time() - 3 * 86400
        for file in (path, *path.rglob("*")):
            os.utime(file, (three_days_ago, three_days_ago))
        registry.retain(NAME, keep=1)
        assert not path.exists()
    assert registry.get(NAME, "latest") == again


def test_a_damaged_file_is_not_handed_out(registry: ModelRegistry, model: Path, tmp_path: Path) -> None:
    version = add(registry, "a", model)
    write(registry, f"{version.directory}/model.safetensors", b"weightz")
    with pytest.raises(
        CorruptModelError, match=r"model\.safetensors of kk-student@1 .* is not what was registered: 7 bytes"
    ):
        registry.fetch(NAME, 1, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    registry.store.delete_file(f"{version.directory}/config.json")
    write(registry, f"{version.directory}/model.safetensors", b"weights")
    with pytest.raises(CorruptModelError, match=r"kk-student@1 .* lacks config\.json"):
        registry.fetch(NAME, 1, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_fetched_copy_is_used_again_while_it_is_intact(registry: ModelRegistry, model: Path, tmp_path: Path) -> None:
    version = add(registry, "a", model)
    fetched = registry.fetch(NAME, 1, tmp_path / "cache")
    assert {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()} == {
        file.path for file in version.files
    }
    inode = (fetched / "model.safetensors").stat().st_ino
    assert registry.fetch(NAME, "latest", tmp_path / "cache") == fetched
    assert (fetched / "model.safetensors").stat().st_ino == inode
    (fetched / "model.safetensors").write_bytes(b"weightz")
    assert registry.fetch(NAME, 1, tmp_path / "cache") == fetched
    assert (fetched / "model.safetensors").read_bytes() == b"weights"
    assert list((tmp_path / "cache").iterdir()) == [fetched]


def test_equal_numbers_of_two_registries_share_a_cache(tmp_path: Path) -> None:
    contents = []
    for place in ("one", "two"):
        registry = ModelRegistry.open(str(tmp_path / place))
        add(registry, "a", export(tmp_path / f"export-{place}", weights=place.encode()))
        contents.append(registry.fetch(NAME, 1, tmp_path / "cache"))
    assert [(path / "model.safetensors").read_bytes() for path in contents] == [b"one", b"two"]


def test_a_manifest_cannot_lead_out_of_its_directory(local: ModelRegistry, model: Path, tmp_path: Path) -> None:
    for path in ("../../secret", "/etc/passwd", ""):
        with pytest.raises(ContractError, match="inside its directory"):
            ModelFile(path=path, bytes=1, sha256="")
    add(local, "a", model)
    manifest = tmp_path / "registry" / NAME / "versions" / "000001.json"
    honest = manifest.read_text()
    for forged, message in (
        (
            honest.replace("adapters/notes.txt", "../../notes.txt"),
            r"files\.0: Value error, a model's file has to lie inside its directory",
        ),
        (honest.replace('"name": "kk-student"', '"name": "../../student"'), "has to lie inside the registry"),
        (honest.replace('"directory": "kk-student', '"directory": "../..'), "has to lie inside the registry"),
        (honest.replace('"bytes": 22', '"bytes": "many"'), r"files\.0\.bytes: Input should be a valid integer"),
        (honest[:-1], "all of it: Invalid JSON"),
    ):
        assert forged != honest
        manifest.write_text(forged)
        with pytest.raises(RegistryError, match=rf"000001\.json in .* is not a ModelVersion .*{message}"):
            local.fetch(NAME, 1, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# --- several processes at once


def test_of_many_who_create_one_file_one_succeeds(local: ModelRegistry) -> None:
    contenders = 8
    start = threading.Barrier(contenders)

    def contend(number: int) -> list[bool]:
        won = []
        for turn in range(50):
            start.wait(timeout=60)
            won.append(local.store.create(f"race/{turn}.json", str(number).encode()))
        return won

    with ThreadPoolExecutor(contenders) as threads:
        results = list(threads.map(contend, range(contenders)))
    for turn in range(50):
        assert [number for number in range(contenders) if results[number][turn]] == [
            int(local.store.read(f"race/{turn}.json") or b"-1")
        ]
    assert len(list(Path(local.uri, "race").iterdir())) == 50


WRITERS, ADDS, MOVES = 3, 2, 5
WRITER = """
import json, random, sys
from pathlib import Path
from rlad.errors import AliasConflictError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.registry.versions import Lineage
from rlad.registry.registry import ModelRegistry

me, uri, name, model, lineage, evaluation, adds, moves = json.loads(sys.stdin.readline())
registry = ModelRegistry.open(uri)
lineage, evaluation = Lineage(**lineage), EvaluationSummary.from_dict(evaluation)
print("ready", flush=True)
sys.stdin.readline()

def add(key):
    return registry.add(name, Path(model), lineage=lineage, evaluation=evaluation, idempotency_key=key).version

shared = add("the same for all")
own = [add(f"{me}-{index}") for index in range(adds)]
moved = []
choose = random.Random(me)
while len(moved) < moves:
    seen = registry.aliases(name).get("production")
    target = choose.choice([number for number in own if number != seen])
    try:
        registry.promote(name, target, expected=seen, reason=f"by {me}")
        moved.append([seen, target])
    except AliasConflictError:
        pass
print(json.dumps([shared, own, moved]))
"""


def test_writers_in_several_processes_agree_on_one_history(registry: ModelRegistry, uri: str, model: Path) -> None:
    lineage = {field: getattr(LINEAGE, field) for field in LINEAGE.__slots__}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(WRITERS)
    ]
    try:
        for me, writer in enumerate(writers):
            assert writer.stdin is not None
            writer.stdin.write(
                json.dumps([me, uri, NAME, str(model), lineage, evaluation().as_dict(), ADDS, MOVES]) + "\n"
            )
            writer.stdin.flush()
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        results = [json.loads(writer.communicate(timeout=120)[0]) for writer in _all_started(writers)]
    finally:
        for writer in writers:
            writer.kill()
    shared = {result[0] for result in results}
    own = [number for result in results for number in result[1]]
    assert len(shared) == 1
    assert sorted([*own, *shared]) == list(range(1, WRITERS * ADDS + 2))
    assert [version.version for version in registry.versions(NAME)] == list(range(1, WRITERS * ADDS + 2))
    assert (
        len(registry.store.entries(f"{NAME}/models")) == WRITERS * ADDS + 1
    )  # who came second with the shared key has cleaned up
    history = registry.history(NAME)
    moves = sorted((tuple(move) for result in results for move in result[2]), key=str)
    assert sorted(((move.previous, move.version) for move in history), key=str) == moves
    assert [move.previous for move in history] == [None, *(move.version for move in history[:-1])]
    assert registry.aliases(NAME) == {"production": history[-1].version}


def _all_started(writers: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Let all of them go before any is waited for."""
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return writers


# --- addresses


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hdfs://name/registry", "a registry is a local path, s3://bucket/prefix or gs://bucket/prefix"),
        ("s3://key:secret@bucket/registry", "holds no credentials"),
        (
            "s3://bucket/registry?access_key=a&secret_key=b",
            "unknown option access_key, secret_key .* s3 takes endpoint_override, region, scheme",
        ),
        ("s3:///registry", "names no bucket"),
    ],
)
def test_addresses_that_name_no_registry_are_refused(uri: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message) as caught:
        open_store(uri)
    assert "secret@" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_named(s3_uri: str, model: Path) -> None:
    registry = ModelRegistry.open(s3_uri.replace("s3://bucket", "s3://nowhere"))
    with pytest.raises(RegistryError, match="the registry at s3://nowhere"):
        add(registry, "a", model)


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(RegistryError, match=r"the registry at s3://bucket/registry\?.* could not read registry.json"):
        ModelRegistry.open("s3://bucket/registry?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")


def test_a_registry_of_another_layout_is_left_alone(local: ModelRegistry, tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "registry.json").write_text('{"layout": 2}')
    with pytest.raises(RegistryError, match="another version of rlad"):
        ModelRegistry.open(local.uri)


@pytest.fixture
def google_storage() -> Iterator[tuple[str, dict[str, bytes]]]:
    """host:port of what answers uploads as Google's storage does, and what it holds."""
    held: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = query["name"][0]
            is_refused = query.get("ifGenerationMatch") == ["0"] and name in held
            if asked.path == "/upload/storage/v1/b/models/o" and query["uploadType"] == ["media"] and not is_refused:
                held[name] = body
            self.send_response(412 if is_refused else 200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", held
    server.shutdown()
    server.server_close()


def test_google_storage_is_asked_to_create_only_what_is_not_there(google_storage: tuple[str, dict[str, bytes]]) -> None:
    endpoint, held = google_storage
    store = open_store(f"gs://models/team/registry?endpoint_override={endpoint}&scheme=http&anonymous=true")
    path = f"{store.root}/kk-student/versions/000001.json"
    assert [store.create_at(path, b"first"), store.create_at(path, b"second")] == [True, False]
    assert held == {"team/registry/kk-student/versions/000001.json": b"first"}


# --- differences


def test_a_difference_names_what_changed_and_nothing_else(registry: ModelRegistry, model: Path) -> None:
    registry.add(NAME, model, lineage=LINEAGE, evaluation=evaluation(5), config=SETTINGS, idempotency_key="a")
    (model / "model.safetensors").write_bytes(b"others")
    (model / "README.md").write_text("card")
    changed = {"seed": 1, "objective": {"name": "trrd", "alpha": 0.25}, "rollout": {"workers": 2}}
    second = replace(LINEAGE, parent="kk-student@1", steps=40)
    registry.add(NAME, model, lineage=second, evaluation=evaluation(8), config=changed, idempotency_key="b")
    found = registry.diff(NAME, 1, "latest")
    assert (found.a, found.b) == ("kk-student@1", "kk-student@2")
    assert found.config == {"objective.alpha": (0.5, 0.25), "rollout.workers": (None, 2)}
    assert found.lineage == {"parent": (None, "kk-student@1"), "steps": (20, 40)}
    assert found.evaluation == {"2": (0.5, 0.8), "all": (0.5, 0.8)}
    assert found.files.keys() == {"model.safetensors", "README.md"}
    assert found.files["README.md"][0] is None
