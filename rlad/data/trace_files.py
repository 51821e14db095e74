"""Traces: a teacher's accepted responses as a folder of parquet files that any later run can train on.

    part-00000.parquet ...   a row an accepted trace; what became of each of its prompts, solved or not, is in the file's own metadata
    traces.json              written last: the counts, and where the traces come from

A part appears whole or not at all, and says by itself which prompts are finished, so a generation that was killed goes on behind the last part.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from rlad.contracts import Array, Outcome
from rlad.errors import DataError, PlanError, RunDirectoryError

logger = logging.getLogger(__name__)

MANIFEST = "traces.json"
_PARTS = "part-*.parquet"
_PARTIAL = ".partial-"
_PROVENANCE_KEY, _PROMPTS_KEY, _SECONDS_KEY = b"rlad.provenance", b"rlad.prompts", b"rlad.seconds"
# A part is written this long after the one before, even if it has few prompts: so much generation can be lost to a kill.
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
class TraceProvenance:
    """Where traces come from.

    Attributes:
        teacher: fingerprint of the generating model's weights and tokenizer; `teacher_path` is the name it had in the configuration.
        tokenizer, template: fingerprints of the vocabulary and of the chat template that was applied to the prompts.
        dataset: fingerprint of the prompts, those beyond `max_prompts` too.
        traces_per_prompt, max_accepted_per_prompt, max_prompts: as in `OfflineConfig`.
        temperature, top_p, max_response_tokens: how the traces were sampled.
    """

    teacher: str
    teacher_path: str
    tokenizer: str
    template: str
    dataset: str
    traces_per_prompt: int
    max_accepted_per_prompt: int | None
    max_prompts: int | None
    temperature: float
    top_p: float
    max_response_tokens: int

    def require_fits(self, *, tokenizer: str, template: str, dataset: str, path: Path) -> None:
        """Refuse traces that do not fit a student and its prompts.

        Raises:
            PlanError: their token ids would mean something else, or they answer other prompts.
        """
        for what, mine, wanted, why in (
            ("tokenizer", self.tokenizer, tokenizer, "their token ids mean something else to the student"),
            ("chat template", self.template, template, "they answer prompts that were put in other words"),
            ("dataset", self.dataset, dataset, "they answer other prompts"),
        ):
            if mine != wanted:
                raise PlanError(
                    f"the traces at {path} do not fit this run: they are of {what} {mine}, the run has {wanted}, so {why}. "
                    f"Use the student and the prompts they were made for, or leave offline.traces out to make new ones"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One accepted response.

    Attributes:
        trace_index: its number among the responses to its prompt.
        response_ids: int32 [N], end-of-sequence token included; `response_text` is what the verifier read.
        behaviour_logprobs: float32 [N], nats, under the teacher at the sampling settings: with top_p below 1 of the cut distribution.
    """

    trace_index: int
    response_ids: Array
    response_text: str
    behaviour_logprobs: Array
    reward: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPrompt:
    """A prompt whose traces are generated and judged.

    Attributes:
        position: of the prompt in its data set.
        traces: those accepted and kept.
        outcomes: of all its responses, in order.
        num_tokens: of all its responses.
    """

    position: int
    prompt_id: str
    task: str
    traces: Sequence[Trace]
    outcomes: Sequence[Outcome]
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCounts:
    """What became of the generated responses.

    Attributes:
        prompts: that responses were generated for; `unsolved_prompts` of them have no accepted one.
        generated: responses; `accepted` of them are kept, `surplus` were right but above `max_accepted_per_prompt`.
        rejected: responses by outcome. A verifier's timeout or error is not a wrong answer, but it is no trace either.
        tokens: of all responses; `accepted_tokens` of those kept.
        seconds: of generation and of the engines' starts, added up over all starts.
    """

    prompts: int
    unsolved_prompts: int
    generated: int
    accepted: int
    surplus: int
    rejected: dict[str, int]
    tokens: int
    accepted_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceManifest:
    """`traces.json`: that a folder of traces is complete, and what is in it."""

    provenance: TraceProvenance
    counts: TraceCounts
    parts: list[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None where the folder is not complete."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        content = json.loads(path.read_text())
        return cls(
            provenance=TraceProvenance(**content["provenance"]),
            counts=TraceCounts(**content["counts"]),
            parts=content["parts"],
        )

    def part_paths(self, folder: Path) -> list[Path]:
        """Raises:
        DataError: a part is missing.
        """
        paths = [folder / name for name in self.parts]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise DataError(
                f"the traces at {folder} are not whole: {', '.join(missing)} is missing, though {MANIFEST} names it"
            )
        return paths


def require_manifest(folder: Path) -> TraceManifest:
    """The manifest of traces made elsewhere.

    Raises:
        PlanError: there are none, or they are not complete.
    """
    manifest = TraceManifest.read(folder)
    if manifest is not None:
        return manifest
    if any(folder.glob(_PARTS)):
        raise PlanError(
            f"the traces at {folder} are not complete: continue the run that makes them with `rlad offline ... --resume`"
        )
    raise PlanError(
        f"no traces at {folder}: expected a folder with {MANIFEST} and {_PARTS}, such as the `traces` of an offline run's directory"
    )


class TraceFolder:
    """A folder of traces that is being filled. It has one owner."""

    def __init__(self, path: Path, provenance: TraceProvenance, *, prompts_per_part: int) -> None:
        """Open or create the folder. What an earlier owner left half-written is removed, and counts as never generated.

        Raises:
            RunDirectoryError: it holds traces of another provenance.
        """
        self._path, self._provenance, self._prompts_per_part = path, provenance, prompts_per_part
        self._waiting: list[TracedPrompt] = []
        self._tallies: dict[int, dict[str, Any]] = {}
        self._seconds = 0.0
        self._next_part = 0
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob(f"{_PARTIAL}*"):
            leftover.unlink()
        for part in sorted(path.glob(_PARTS)):
            self._take_up(part)
        self._since = time.monotonic()

    @property
    def finished(self) -> set[int]:
        """Positions of the prompts that need no generation any more."""
        return {*self._tallies, *(prompt.position for prompt in self._waiting)}

    def add(self, prompt: TracedPrompt) -> None:
        """Keep a prompt's traces. They are safe once its part is written, which a full part is, or one that has waited long."""
        self._waiting.append(prompt)
        if len(self._waiting) >= self._prompts_per_part or time.monotonic() - self._since >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as a part."""
        if not self._waiting:
            return
        seconds = time.monotonic() - self._since
        tallies = [_tally(prompt) for prompt in self._waiting]
        metadata = {
            _PROVENANCE_KEY: json.dumps(asdict(self._provenance)),
            _PROMPTS_KEY: json.dumps(tallies),
            _SECONDS_KEY: json.dumps(seconds),
        }
        rows = [row for prompt in self._waiting for row in _rows(prompt, self._provenance)]
        table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(metadata))
        name = f"part-{self._next_part:05d}.parquet"
        partial = self._path / f"{_PARTIAL}{name}"
        pq.write_table(table, partial, compression="zstd")
        _make_durable(partial)
        partial.replace(self._path / name)
        self._record(tallies, seconds)
        self._next_part += 1
        self._waiting.clear()
        self._since = time.monotonic()

    def finish(self) -> TraceManifest:
        """Write the last part and the manifest: the folder is complete."""
        self.flush()
        manifest = TraceManifest(
            provenance=self._provenance,
            counts=_counts(self._tallies, self._seconds),
            parts=sorted(part.name for part in self._path.glob(_PARTS)),
        )
        partial = self._path / f"{_PARTIAL}{MANIFEST}"
        partial.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        _make_durable(partial)
        partial.replace(self._path / MANIFEST)
        return manifest

    def counts(self) -> TraceCounts:
        """Of the parts written so far."""
        return _counts(self._tallies, self._seconds)

    def _take_up(self, part: Path) -> None:
        try:
            metadata: Mapping[bytes, bytes] = pq.read_schema(part).metadata or {}
            provenance = TraceProvenance(**json.loads(metadata[_PROVENANCE_KEY]))
            tallies, seconds = json.loads(metadata[_PROMPTS_KEY]), json.loads(metadata[_SECONDS_KEY])
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning(
                "unreadable part of traces removed, its prompts are generated again path=%s problem=%s", part, error
            )
            part.unlink()
            return
        if provenance != self._provenance:
            changed = [
                field.name
                for field in fields(provenance)
                if getattr(provenance, field.name) != getattr(self._provenance, field.name)
            ]
            raise RunDirectoryError(
                f"{part} was made with another {', '.join(changed)}: traces of one folder come from one teacher and one setting; "
                f"move {self._path} away, or choose another --run-dir"
            )
        self._record(tallies, seconds)
        self._next_part = int(part.stem.removeprefix("part-")) + 1

    def _record(self, tallies: list[dict[str, Any]], seconds: float) -> None:
        self._tallies |= {tally["position"]: tally for tally in tallies}
        self._seconds += seconds


def _tally(prompt: TracedPrompt) -> dict[str, Any]:
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


def _make_durable(path: Path) -> None:
    """A rename must not become durable before the content it names."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
