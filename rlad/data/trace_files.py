"""Trace folders: accepted responses of a teacher in parquet files that later runs can train on.

    part-00000.parquet ...   one row per accepted trace; results of each prompt, solved or not, in the file metadata
    traces.json              counts and provenance
    SHA256SUMS               checksum of every part; that of traces.json is added last and makes the folder complete

A part appears atomically and records which prompts are finished, so a killed generation resumes after its last part.
Parts are verified when a generation is continued, and all files when a run takes the traces.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from rlad.contracts import Outcome
from rlad.data.trace_records import TraceCounts, TracedPrompt, TraceProvenance
from rlad.errors import CorruptFileError, PlanError, RunDirectoryError
from rlad.integrity.durable import move_into_place, storage_errors, sync_file, write_atomically
from rlad.integrity.manifest import MANIFEST as CHECKSUMS
from rlad.integrity.manifest import read_manifest, sha256_of, verify, write_manifest

logger = logging.getLogger(__name__)

MANIFEST = "traces.json"
_REMEDY = "Restore the file from a backup, or generate the traces again"
_PARTS = "part-*.parquet"
_PARTIAL = ".partial-"
_PROVENANCE_KEY, _PROMPTS_KEY, _SECONDS_KEY = b"rlad.provenance", b"rlad.prompts", b"rlad.seconds"
# Age in seconds at which a part is written although it is not full. A kill loses about this much generation.
_PART_SECONDS = 60.0

_SCHEMA = pa.schema(
    [
        ("prompt_position", pa.int32()),
        ("prompt_id", pa.string()),
        ("task", pa.string()),
        ("trace_index", pa.int32()),
        ("response_ids", pa.list_(pa.int32())),
        ("response_text", pa.string()),
        ("behaviour_logprobs", pa.list_(pa.float32())),
        ("reward", pa.float32()),
        ("outcome", pa.string()),
        ("teacher_fingerprint", pa.dictionary(pa.int32(), pa.string())),
        ("tokenizer_fingerprint", pa.dictionary(pa.int32(), pa.string())),
        ("dataset_fingerprint", pa.dictionary(pa.int32(), pa.string())),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("max_response_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceManifest:
    """Content of `traces.json`, which exists only in a complete trace folder.

    Attributes:
        provenance: Provenance of the traces.
        counts: Counts over all parts.
        parts: File names of the parts.
    """

    provenance: TraceProvenance
    counts: TraceCounts
    parts: list[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the manifest of a folder. Return None if the folder is incomplete.

        Raises:
            CorruptFileError: It is damaged.
        """
        path = folder / MANIFEST
        if not path.is_file() or MANIFEST not in _listed(folder):
            return None
        if sha256_of(path) != _listed(folder)[MANIFEST]:
            raise CorruptFileError(f"{path} is damaged: it does not match {CHECKSUMS}. {_REMEDY}")
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            raise CorruptFileError(f"{path} is damaged: it does not hold the manifest of traces. {_REMEDY}") from error

    def part_paths(self, folder: Path) -> list[Path]:
        """Verify all parts and return their paths.

        Raises:
            CorruptFileError: A part is missing or damaged.
        """
        verify(folder, remedy=_REMEDY, is_closed=False)
        return [folder / name for name in self.parts]


def require_manifest(folder: Path) -> TraceManifest:
    """Return the manifest of a folder of existing traces.

    Raises:
        PlanError: The folder holds no traces, or is incomplete.
    """
    manifest = TraceManifest.read(folder)
    if manifest is not None:
        return manifest
    if (folder / MANIFEST).is_file() and not (folder / CHECKSUMS).is_file():
        raise PlanError(
            f"the traces at {folder} have no {CHECKSUMS}, because an earlier version of rlad wrote them; resume the "
            "run that generated them with `rlad run ... --resume`, which adds it"
        )
    if any(folder.glob(_PARTS)):
        raise PlanError(
            f"the traces at {folder} are not complete; resume the run that generates them with `rlad run ... --resume`"
        )
    raise PlanError(
        f"no traces at {folder}; expected a folder with {MANIFEST} and {_PARTS}, "
        "such as `traces` in the directory of an offline run"
    )


class TraceFolder:
    """Writer of a trace folder. A folder has one writer at a time."""

    def __init__(self, path: Path, provenance: TraceProvenance, *, prompts_per_part: int) -> None:
        """Open or create the folder.

        Partial files of an earlier writer are deleted, and their prompts count as unfinished.

        Args:
            path: Path of the folder.
            provenance: Provenance of all traces of the folder.
            prompts_per_part: Number of prompts after which a part is written.

        Raises:
            RunDirectoryError: The folder holds traces with another provenance.
        """
        self._path, self._provenance, self._prompts_per_part = path, provenance, prompts_per_part
        self._pending: list[TracedPrompt] = []
        self._tallies: dict[int, dict[str, Any]] = {}
        self._seconds = 0.0
        self._next_part = 0
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob(f"{_PARTIAL}*"):
            leftover.unlink()
        self._digests = {name: digest for name, digest in _listed(path).items() if name != MANIFEST}
        has_checksums = (path / CHECKSUMS).is_file()
        for part in sorted(path.glob(_PARTS)):
            if not has_checksums:  # of an earlier version
                self._digests[part.name] = sha256_of(part)
            self._load_part(part)
        if lost := [name for name in self._digests if not (path / name).is_file()]:
            logger.warning("trace parts are missing, their prompts are generated again parts=%s", ",".join(lost))
            self._digests = {name: digest for name, digest in self._digests.items() if name not in lost}
        self._since = time.monotonic()

    @property
    def finished(self) -> set[int]:
        """Positions of prompts that need no further generation."""
        return {*self._tallies, *(prompt.position for prompt in self._pending)}

    def add(self, prompt: TracedPrompt) -> None:
        """Add a prompt's traces. They are durable once their part is written: when it is full or 60 seconds old."""
        self._pending.append(prompt)
        if len(self._pending) >= self._prompts_per_part or time.monotonic() - self._since >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending prompts as a part."""
        if not self._pending:
            return
        seconds = time.monotonic() - self._since
        tallies = [_tally(prompt) for prompt in self._pending]
        metadata = {
            _PROVENANCE_KEY: json.dumps(asdict(self._provenance)),
            _PROMPTS_KEY: json.dumps(tallies),
            _SECONDS_KEY: json.dumps(seconds),
        }
        rows = [row for prompt in self._pending for row in _rows(prompt, self._provenance)]
        table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(metadata))
        name = f"part-{self._next_part:05d}.parquet"
        partial = self._path / f"{_PARTIAL}{name}"
        with storage_errors(partial):
            pq.write_table(table, partial, compression="zstd")
        sync_file(partial)
        self._digests[name] = sha256_of(partial)
        write_manifest(self._path, self._digests)  # first: a part that is not listed would be generated again
        move_into_place(partial, self._path / name)
        self._record(tallies, seconds)
        self._next_part += 1
        self._pending.clear()
        self._since = time.monotonic()

    def finish(self) -> TraceManifest:
        """Write the last part and the manifest, which makes the folder complete."""
        self.flush()
        manifest = TraceManifest(
            provenance=self._provenance,
            counts=_counts(self._tallies, self._seconds),
            parts=sorted(part.name for part in self._path.glob(_PARTS)),
        )
        write_atomically(self._path / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
        write_manifest(self._path, {**self._digests, MANIFEST: sha256_of(self._path / MANIFEST)})
        return manifest

    def counts(self) -> TraceCounts:
        """Return the counts of the parts written so far."""
        return _counts(self._tallies, self._seconds)

    def _load_part(self, part: Path) -> None:
        """Count the prompts of an existing part as finished, or delete the part if it is damaged or not listed."""
        try:
            if sha256_of(part) != self._digests.get(part.name):
                raise CorruptFileError(f"it does not match {CHECKSUMS}")
            metadata: Mapping[bytes, bytes] = pq.read_schema(part).metadata or {}
            provenance = TraceProvenance(**json.loads(metadata[_PROVENANCE_KEY]))
            tallies, seconds = json.loads(metadata[_PROMPTS_KEY]), json.loads(metadata[_SECONDS_KEY])
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning(
                "deleted unreadable trace part, its prompts are generated again path=%s error=%s", part, error
            )
            part.unlink()
            self._digests.pop(part.name, None)
            return
        if provenance != self._provenance:
            changed = [
                field.name
                for field in fields(provenance)
                if getattr(provenance, field.name) != getattr(self._provenance, field.name)
            ]
            raise RunDirectoryError(
                f"{part} was generated with another {', '.join(changed)}; the traces of a folder must have one teacher "
                f"and one configuration. Move {self._path} away, or choose another --run-dir"
            )
        self._record(tallies, seconds)
        self._next_part = int(part.stem.removeprefix("part-")) + 1

    def _record(self, tallies: list[dict[str, Any]], seconds: float) -> None:
        self._tallies |= {tally["position"]: tally for tally in tallies}
        self._seconds += seconds


def _tally(prompt: TracedPrompt) -> dict[str, Any]:
    """Return the counts of one prompt, as stored in the metadata of its part."""
    return {
        "position": prompt.position,
        "prompt_id": prompt.prompt_id,
        "accepted": len(prompt.traces),
        "accepted_tokens": sum(len(trace.response_ids) for trace in prompt.traces),
        "outcomes": dict(Counter(outcome.name.lower() for outcome in prompt.outcomes)),
        "tokens": prompt.num_tokens,
    }


def _counts(tallies: Mapping[int, dict[str, Any]], seconds: float) -> TraceCounts:
    outcomes: Counter[str] = Counter()
    for tally in tallies.values():
        outcomes.update(tally["outcomes"])
    accepted = sum(tally["accepted"] for tally in tallies.values())
    correct = Outcome.CORRECT.name.lower()
    return TraceCounts(
        prompts=len(tallies),
        unsolved_prompts=sum(not tally["outcomes"].get(correct) for tally in tallies.values()),
        generated=outcomes.total(),
        accepted=accepted,
        surplus=outcomes[correct] - accepted,
        rejected={
            outcome.name.lower(): outcomes[outcome.name.lower()]
            for outcome in Outcome
            if outcome is not Outcome.CORRECT
        },
        tokens=sum(tally["tokens"] for tally in tallies.values()),
        accepted_tokens=sum(tally["accepted_tokens"] for tally in tallies.values()),
        seconds=seconds,
    )


def _rows(prompt: TracedPrompt, provenance: TraceProvenance) -> Iterator[dict[str, Any]]:
    """Yield one row per trace of a prompt."""
    for trace in prompt.traces:
        yield {
            "prompt_position": prompt.position,
            "prompt_id": prompt.prompt_id,
            "task": prompt.task,
            "trace_index": trace.trace_index,
            "response_ids": trace.response_ids,
            "response_text": trace.response_text,
            "behaviour_logprobs": trace.behaviour_logprobs,
            "reward": trace.reward,
            "outcome": trace.outcome.name.lower(),
            "teacher_fingerprint": provenance.teacher,
            "tokenizer_fingerprint": provenance.tokenizer,
            "dataset_fingerprint": provenance.dataset,
            "temperature": provenance.temperature,
            "top_p": provenance.top_p,
            "max_response_tokens": provenance.max_response_tokens,
        }


def _listed(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder by file name; none if it has no checksums."""
    return read_manifest(folder) if (folder / CHECKSUMS).is_file() else {}
