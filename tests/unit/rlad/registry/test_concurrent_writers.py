"""Writers in several threads and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlad.evaluation.accuracy import EvaluationSummary
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage

NAME = "kk-student"
ROOT = Path(__file__).parents[4]
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


def test_exactly_one_of_many_writers_creates_a_file(local: ModelRegistry) -> None:
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


def test_writers_in_several_processes_agree_on_one_history(
    evaluation: Callable[..., EvaluationSummary],
    lineage_record: Lineage,
    registry: ModelRegistry,
    uri: str,
    model: Path,
) -> None:
    lineage = {field: getattr(lineage_record, field) for field in lineage_record.__slots__}
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
    )  # the writers that came second with the shared key have deleted their files
    history = registry.history(NAME)
    moves = sorted((tuple(move) for result in results for move in result[2]), key=str)
    assert sorted(((move.previous, move.version) for move in history), key=str) == moves
    assert [move.previous for move in history] == [None, *(move.version for move in history[:-1])]
    assert registry.aliases(NAME) == {"production": history[-1].version}


def _all_started(writers: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Start all writers before waiting for any of them."""
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return writers
