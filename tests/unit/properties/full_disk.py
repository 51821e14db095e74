"""Program that writes every kind of file on a disk with more and more room: `full_disk.py DISK OTHER`.

DISK is a small file system of its own, OTHER a folder elsewhere. For each kind, the disk is filled up to a few pages, a
write is attempted, and the content is checked; with each attempt there is more room, until the write succeeds. Prints
one JSON object per kind.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import torch.distributed as dist
from transformers import Qwen2Config

from actors.engines.zero_engine.checkpoint_files import SafeCheckpointEngine, require_intact, write_checkpoint
from actors.engines.zero_engine.export import export_model
from actors.learner.checkpoints import newest_checkpoint
from pipelines.run.directory import RunDirectory
from rlad.config import load_run_config
from rlad.data.trace_files import TraceFolder
from rlad.data.training_traces import TrainingTraces, write_training_traces
from rlad.errors import RladError, StorageError
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.integrity.durable import append_durably, move_into_place, write_atomically
from rlad.integrity.manifest import verify
from rlad.ledger import GroupState, Ledger
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage
from tests.unit.rlad.data.trace_prompts import PROVENANCE, R, prompt

PAGE = os.sysconf("SC_PAGE_SIZE")
ROOT = Path(__file__).parents[3]
LINEAGE = Lineage(
    run_id="nightly",
    run_dir="/runs/nightly",
    config_sha256="c0ffee",
    parent=None,
    base_model="student",
    teachers={},
    prompts_fingerprint="0123",
    num_prompts=8,
    steps=2,
    rlad_version="0.1.0",
    git_commit=None,
    created_at="2026-01-31T02:00:00+00:00",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        write: Writes version 1 or 2.
        read: Returns the version that is there, 0 for none, after a check of the content.
    """

    write: Callable[[int], object]
    read: Callable[[], int]


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self._path, self._filler = path, path / "filler"

    def leave(self, pages: int) -> None:
        """Fill it up to a number of free pages."""
        self._filler.unlink(missing_ok=True)
        found = os.statvfs(self._path)
        size = found.f_bavail * found.f_frsize - pages * PAGE
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def empty(self) -> None:
        """Free what was filled."""
        self._filler.unlink(missing_ok=True)


def attempts(disk: Disk, kind: Kind) -> dict[str, object]:
    """Write version 2 over version 1 with more and more room, until it succeeds."""
    errors: list[str] = []
    others: list[str] = []
    kind.write(1)
    pages = 0
    while True:
        disk.leave(pages)
        try:
            kind.write(2)
        except (StorageError, RladError) as error:
            errors.append(str(error))
        except Exception as error:  # noqa: BLE001 - reported to the test
            others.append(f"{type(error).__name__}: {error}")
        finally:
            disk.empty()
        found = kind.read()
        if not errors + others or found == 2:
            return {"errors": errors, "others": others, "found": found}
        assert found == 1, f"version {found} after {(errors + others)[-1]}"
        if len(errors + others) > 60:
            return {"errors": errors, "others": others, "found": found}
        pages += 1 + pages // 4


def report(folder: Path) -> Kind:
    path = folder / "report.html"
    return Kind(
        write=lambda version: write_atomically(path, str(version) * 20_000), read=lambda: int(path.read_text()[0])
    )


def metrics(folder: Path) -> Kind:
    path = folder / "metrics.jsonl"
    return Kind(
        write=lambda version: append_durably(path, str(version) * 20_000 + "\n"),
        read=lambda: len(path.read_text().splitlines()),
    )


def ledger(folder: Path) -> Kind:
    folder.mkdir()
    opened = Ledger(folder / "ledger.sqlite")
    opened.issue(0, [("0", "prompt")])

    def read() -> int:
        with closing(Ledger(folder / "ledger.sqlite", read_only=True)) as other:
            return other.counts().states[GroupState.ISSUED] // 400

    def write(version: int) -> None:
        opened.issue(version, [(f"{version}-{index}", "prompt") for index in range(400)])

    return Kind(write=write, read=read)


def start(folder: Path) -> Kind:
    """The start of a run, version 2, in a folder without one, version 1."""
    run = RunDirectory(folder / "runs" / "first")
    config = load_run_config(ROOT / "configs" / "smoke_cpu.yaml", [])
    folder.mkdir()

    def write(version: int) -> None:
        if version == 2:
            with run.hold(config, resume=False):
                (run.path / "begun").touch()

    return Kind(write=write, read=lambda: 2 if run.config.exists() and run.read_config() == config else 1)


def checkpoint(folder: Path) -> Kind:
    def write(version: int) -> None:
        engine, partial = SafeCheckpointEngine(), folder / f".partial-step-{version:06d}"
        shutil.rmtree(partial, ignore_errors=True)

        def write_files() -> None:
            partial.mkdir(parents=True)
            for name in ("model", "optimizer"):
                engine.save({name: torch.full((5_000,), float(version))}, str(partial / f"{name}.pt"))

        write_checkpoint(engine, partial, write_files)
        move_into_place(partial, folder / f"step-{version:06d}")

    def read() -> int:
        newest = newest_checkpoint(folder)
        if newest is None:
            return 0
        require_intact(newest)
        return int(newest.name.removeprefix("step-"))

    return Kind(write=write, read=read)


def export(folder: Path, source: Path) -> Kind:
    source.mkdir()
    Qwen2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(source)

    def write(version: int) -> None:
        export_model({"model.weight": torch.full((5_000,), float(version))}, source, folder)

    def read() -> int:
        verify(folder, remedy="")
        return int((folder / "model.safetensors").read_bytes()[-1] == 0x40) + 1  # 2.0 is 0x40000000

    return Kind(write=write, read=read)


def traces(folder: Path) -> Kind:
    """A folder with one part or two. Each write is that of another writer, as after a restart."""

    def write(version: int) -> None:
        opened = TraceFolder(folder, PROVENANCE, prompts_per_part=300)
        for position in range(300):
            number = version * 1000 + position
            if number not in opened.finished:
                opened.add(prompt(number, (R,), (0,)))

    def read() -> int:
        return len(TraceFolder(folder, PROVENANCE, prompts_per_part=300).finished) // 300

    return Kind(write=write, read=read)


def training_traces(folder: Path, parts: Path) -> Kind:
    folder.mkdir()
    written = TraceFolder(parts, PROVENANCE, prompts_per_part=500)
    for position in range(500):
        written.add(prompt(position, (R,), (0,)))
    target = folder / "training_traces.arrow"

    def write(version: int) -> None:
        if version == 2:
            write_training_traces(
                [parts / "part-00000.parquet"], target, max_prompts=None, max_accepted_per_prompt=None
            )

    return Kind(write=write, read=lambda: 2 if target.exists() and len(TrainingTraces(target)) == 500 else 1)


def registry(folder: Path, model: Path) -> Kind:
    model.mkdir()
    (model / "config.json").write_text("{}")
    opened, evaluation = ModelRegistry.open(str(folder)), _evaluation()

    def write(version: int) -> None:
        (model / "model.safetensors").write_bytes(bytes([version]) * 20_000)
        opened.add("student", model, lineage=LINEAGE, evaluation=evaluation, idempotency_key=f"run-{version}")

    def read() -> int:
        versions = opened.versions("student")
        for each in versions:
            path = opened.local_path(each)
            assert path is not None
            assert (path / "model.safetensors").read_bytes() == bytes([each.version]) * 20_000
        return len(versions)

    return Kind(write=write, read=read)


def _evaluation() -> EvaluationSummary:
    result = PromptResult(prompt_id="p", groups=("2",), rewards=(1.0,), response_tokens=(3,), num_truncated=0)
    return summarise([result])


def main() -> None:
    disk, other = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    kinds = {
        "report": report(disk),
        "metrics": metrics(disk),
        "ledger": ledger(disk / "ledger"),
        "start": start(disk / "start"),
        "checkpoint": checkpoint(disk / "checkpoints"),
        "export": export(disk / "export", other / "source"),
        "traces": traces(disk / "traces"),
        "training traces": training_traces(disk / "training", other / "parts"),
        "registry": registry(disk / "registry", other / "model"),
    }
    for name, kind in kinds.items():
        print(json.dumps({"kind": name, **attempts(Disk(disk), kind)}), flush=True)


if __name__ == "__main__":
    main()
