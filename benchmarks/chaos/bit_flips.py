"""Bit flips: one bit of a file is changed, and the file is read back the way that a run reads it.

python -m benchmarks.chaos.bit_flips --json OUT

A flip is found if the read fails with a typed error. Every kind of file must find all of them.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import torch
import torch.distributed as dist

from benchmarks.measure import JsonPath
from pipelines.run.directory import RunDirectory
from rlad.config import load_run_config
from rlad.contracts import Outcome
from rlad.data.trace_files import TraceFolder, require_manifest
from rlad.data.trace_records import Trace, TracedPrompt, TraceProvenance
from rlad.data.training_traces import TrainingTraces, write_training_traces
from rlad.errors import RladError
from rlad.evaluation.accuracy import PromptResult, summarise
from rlad.integrity.manifest import verify, write_manifest
from rlad.ledger import Ledger
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage

_SMOKE = Path(__file__).parents[2] / "configs" / "smoke_cpu.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: Name in the table.
        files: The files; each flip picks one of them at random.
        read: Reads the files back as a run does, and raises if they are damaged.
    """

    name: str
    files: list[Path]
    read: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Result of all flips of one kind of file.

    Attributes:
        kind: Kind of file.
        flips: Number of flips.
        unnoticed: Number of flips that were read back without an error.
        untyped: Number of flips that raised another error than one of rlad.
    """

    kind: str
    flips: int
    unnoticed: int
    untyped: int


def main(
    flips: Annotated[int, typer.Option(help="Flips of each kind of file.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the flipped bits.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Flip bits in every kind of file, and count those that go unnoticed."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        tallies = [tally(kind, flips, chance) for make in _KINDS for kind in _made(make, Path(folder))]
    table = Table("kind of file", "flips", "unnoticed", "untyped errors", title="One flipped bit, read back")
    for each in tallies:
        table.add_row(each.kind, str(each.flips), str(each.unnoticed), str(each.untyped))
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(each) for each in tallies], indent=2) + "\n")
    if any(each.unnoticed or each.untyped for each in tallies):
        sys.exit(1)


def tally(kind: FileKind, flips: int, chance: random.Random) -> Tally:
    """Flip one bit at a time, read the files back, and restore them."""
    kind.read()
    unnoticed = untyped = 0
    for _ in range(flips):
        path = chance.choice(kind.files)
        honest = path.read_bytes()
        changed = bytearray(honest)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            kind.read()
        except RladError:
            pass
        except Exception as error:  # noqa: BLE001 - counted
            untyped += 1
            print(f"{kind.name}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            unnoticed += 1
        path.write_bytes(honest)
    kind.read()
    return Tally(kind=kind.name, flips=flips, unnoticed=unnoticed, untyped=untyped)


def checkpoint(folder: Path) -> Iterator[FileKind]:
    """A learner checkpoint: weights and optimizer state."""
    from actors.engines.zero_engine.checkpoint_files import SafeCheckpointEngine, require_intact, write_checkpoint

    engine = SafeCheckpointEngine()
    (folder / "zero").mkdir(parents=True)

    def write() -> None:
        for name in ("model_states", "optim_states"):
            engine.save({name: torch.randn(5000), "step": 3}, str(folder / "zero" / f"{name}.pt"))

    with _process_group():
        write_checkpoint(engine, folder, write)
        yield FileKind(name="checkpoint", files=_files(folder), read=lambda: require_intact(folder))


def export(folder: Path) -> Iterator[FileKind]:
    """An exported model."""
    _write_model(folder)
    write_manifest(folder)
    yield FileKind(name="export", files=_files(folder), read=lambda: verify(folder, remedy="Delete it"))


def traces(folder: Path) -> Iterator[FileKind]:
    """A trace folder, and a run's own copy of the traces."""
    provenance = TraceProvenance(
        teacher="t" * 32,
        teacher_path="teacher",
        tokenizer="a" * 16,
        template="b" * 16,
        dataset="c" * 16,
        traces_per_prompt=2,
        max_accepted_per_prompt=None,
        max_prompts=None,
        temperature=1.0,
        top_p=1.0,
        max_response_tokens=64,
    )
    written = TraceFolder(folder / "traces", provenance, prompts_per_part=8)
    for position in range(24):
        written.add(_traced(position))
    written.finish()

    def read() -> list[Path]:
        return require_manifest(folder / "traces").part_paths(folder / "traces")

    yield FileKind(name="traces (parquet)", files=_files(folder / "traces"), read=read)
    copy = folder / "training_traces.arrow"
    write_training_traces(read(), copy, max_prompts=None, max_accepted_per_prompt=None)
    beside = copy.with_name(f"{copy.name}.sha256")
    yield FileKind(name="training_traces.arrow", files=[copy, beside], read=lambda: TrainingTraces(copy))


def ledger(folder: Path) -> Iterator[FileKind]:
    """A ledger of 25 steps, closed."""
    folder.mkdir()
    path = folder / "ledger.sqlite"
    book = Ledger(path)
    for step in range(25):
        attempts = book.issue(step, [(f"d:0:{step * 8 + index}", f"prompt {index}") for index in range(8)])
        for uid, attempt in attempts.items():
            book.record_sampled(uid, attempt)
            book.record_scored(uid, attempt)
        book.record_claimed(attempts)
        book.record_trained(step, attempts)
    book.commit(25)
    book.close()
    files = [path, path.with_name("ledger.sqlite.sha256")]
    yield FileKind(name="ledger, to write", files=files, read=lambda: Ledger(path).close())
    yield FileKind(name="ledger, read only", files=files, read=lambda: Ledger(path, read_only=True).close())


def run_files(folder: Path) -> Iterator[FileKind]:
    """The small files of a run directory that a resume depends on."""
    config, run = load_run_config(_SMOKE), RunDirectory(folder)
    with run.hold(config, resume=False):
        run.record_inputs({"the training prompts (prompts)": "a" * 64, "the student's tokenizer": "b" * 64})
        run.record_teachers({"teacher": "f" * 32})
        for step in range(5):
            run.seals.append(run.metrics, json.dumps({"step": step, "reward/mean": step / 10}) + "\n")
        run.seals.append(run.evaluations, json.dumps({"step": 0, "accuracy": 0.25}) + "\n")

    def resume() -> None:
        with run.hold(config, resume=True):
            pass

    for path in (run.config, run.inputs, run.teachers, run.metrics, run.evaluations, folder / "seals.json"):
        yield FileKind(name=path.name, files=[path], read=resume)


def registry(folder: Path) -> Iterator[FileKind]:
    """A registered model: its files, its manifest, and the change log."""
    _write_model(folder / "model")
    models = ModelRegistry.open(str(folder / "registry"))
    results = [
        PromptResult(prompt_id="p", groups=("all",), rewards=(1.0, 0.0), response_tokens=(3, 4), num_truncated=0)
    ]
    lineage = Lineage(
        run_id="run",
        run_dir="runs/run",
        config_sha256="0" * 64,
        parent=None,
        base_model="base",
        teachers={},
        prompts_fingerprint="c" * 16,
        num_prompts=1,
        steps=1,
        rlad_version="0",
        git_commit=None,
        created_at="2026-01-01T00:00:00Z",
    )
    version = models.add(
        "student", folder / "model", lineage=lineage, evaluation=summarise(results), idempotency_key="run"
    )
    models.promote("student", 1, expected=None, reason="first")
    own = models.local_path(version)
    assert own is not None

    def fetch() -> None:
        models.fetch("student", "production", folder / "cache")

    def use() -> None:
        models.verified_path("student", "production", folder / "cache")

    yield FileKind(name="registry, local copy", files=_files(own), read=use)
    records = [path for name in ("versions", "changes") for path in _files(folder / "registry" / "student" / name)]
    yield FileKind(name="registry, records", files=records, read=fetch)


_KINDS = (checkpoint, export, traces, ledger, run_files, registry)


def _made(make: Callable[[Path], Iterator[FileKind]], folder: Path) -> Iterator[FileKind]:
    yield from make(folder / make.__name__)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_model(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": dict.fromkeys("abcdef", 1)}}))
    save_file({"model.weight": torch.randn(64, 64)}, folder / "model.safetensors")


def _traced(position: int) -> TracedPrompt:
    import numpy as np

    trace = Trace(
        trace_index=0,
        response_ids=np.arange(12, dtype=np.int32) + position,
        response_text=f"response {position}",
        behaviour_logprobs=np.linspace(-2, 0, 12, dtype=np.float32),
        reward=1.0,
        outcome=Outcome.CORRECT,
    )
    return TracedPrompt(
        position=position,
        prompt_id=f"prompt-{position}",
        task="puzzle",
        traces=[trace],
        outcomes=[Outcome.CORRECT, Outcome.WRONG],
        num_tokens=24,
    )


@contextmanager
def _process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
