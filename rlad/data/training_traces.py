"""Training traces: a run's own copy of its traces, read through a memory map.

Any number of traces costs no memory. The run keeps a copy because a trace folder may be moved or regenerated before the
run resumes. The copy is in the Arrow file format because parquet cannot read a single row without decoding its
neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from rlad.contracts import Array, Outcome
from rlad.errors import DataError
from rlad.integrity.durable import move_into_place, storage_errors, sync_file, write_atomically
from rlad.integrity.manifest import checksum_path, sha256_of, verify_checksum

_COLUMNS = ["prompt_position", "trace_index", "response_ids", "behaviour_logprobs", "reward", "outcome"]
_SCHEMA = pa.schema(
    [
        ("prompt_position", pa.int32()),
        ("trace_index", pa.int32()),
        ("response_ids", pa.list_(pa.int32())),
        ("behaviour_logprobs", pa.list_(pa.float32())),
        ("reward", pa.float32()),
        ("outcome", pa.uint8()),
        ("digest", pa.uint64()),
    ]
)
_SMALL = ("prompt_position", "trace_index", "reward", "outcome", "digest")
_OUTCOMES = {outcome.name.lower(): int(outcome) for outcome in Outcome}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTrace:
    """Trace of T tokens. The arrays are views of the memory map.

    Attributes:
        prompt_position: Position of its prompt in the data set.
        trace_index: Index among the responses to its prompt.
        response_ids: Response tokens, int32 [T].
        behaviour_logprobs: Log-probabilities under the teacher that sampled it, in nats, float32 [T].
        reward: Reward of the verifier.
        outcome: Outcome of the verifier.
    """

    prompt_position: int
    trace_index: int
    response_ids: Array
    behaviour_logprobs: Array
    reward: float
    outcome: Outcome


def write_training_traces(
    parts: Sequence[Path], target: Path, *, max_prompts: int | None, max_accepted_per_prompt: int | None
) -> None:
    """Copy traces to `target`, which appears atomically. One part is in memory at a time.

    Args:
        parts: Parquet files of a trace folder (see `rlad.data.trace_files`).
        target: Path of the Arrow file.
        max_prompts: Number of leading prompts of the data set whose traces are copied; None copies all.
        max_accepted_per_prompt: Maximum traces per prompt, lowest index first; None copies all.
    """
    partial = target.with_name(f".partial-{target.name}")
    with storage_errors(partial), pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as file:
        for part in parts:
            table = pq.read_table(part, columns=_COLUMNS)
            positions, indices = (table.column(name).to_numpy() for name in ("prompt_position", "trace_index"))
            rows = _chosen(positions, indices, max_prompts=max_prompts, max_accepted_per_prompt=max_accepted_per_prompt)
            chosen = table.take(pa.array(rows)).combine_chunks()
            if len(rows):
                file.write_batch(_batch(chosen))
    sync_file(partial)
    write_atomically(checksum_path(target), f"{sha256_of(partial)}  {target.name}\n")
    move_into_place(partial, target)


def _chosen(positions: Array, indices: Array, *, max_prompts: int | None, max_accepted_per_prompt: int | None) -> Array:
    """Return the rows to copy, sorted by prompt and index. All traces of a prompt are in one part."""
    order = np.lexsort((indices, positions))
    positions = positions[order]
    starts = np.searchsorted(positions, positions, side="left")
    is_chosen = np.ones(len(order), bool)
    if max_prompts is not None:
        is_chosen &= positions < max_prompts
    if max_accepted_per_prompt is not None:
        is_chosen &= np.arange(len(order)) - starts < max_accepted_per_prompt
    rows: Array = order[is_chosen]
    return rows


def _batch(table: Any) -> Any:
    columns = {name: table.column(name).combine_chunks() for name in _COLUMNS}
    outcomes = [_OUTCOMES[name] for name in columns.pop("outcome").to_pylist()]
    tokens = _Lists(columns["response_ids"])
    digests = [xxhash.xxh3_64_intdigest(tokens[row].tobytes()) for row in range(table.num_rows)]
    arrays = {**columns, "outcome": pa.array(outcomes, pa.uint8()), "digest": pa.array(digests, pa.uint64())}
    return pa.RecordBatch.from_arrays([arrays[name] for name in _SCHEMA.names], schema=_SCHEMA)


class TrainingTraces:
    """Traces of a run, sorted by prompt and index, regardless of the order of their parts."""

    def __init__(self, path: Path) -> None:
        """Verify and open the file that `write_training_traces` wrote.

        Raises:
            CorruptFileError: The file is damaged.
            DataError: The file holds no trace.
        """
        verify_checksum(path, remedy="Delete it: --resume copies the traces again")
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        if not batches:
            raise DataError(f"{path} holds no trace; expected at least one accepted trace")
        self._tokens = [_Lists(batch.column("response_ids")) for batch in batches]
        self._logprobs = [_Lists(batch.column("behaviour_logprobs")) for batch in batches]
        small = {name: np.concatenate([batch.column(name).to_numpy() for batch in batches]) for name in _SMALL}
        order = np.lexsort((small["trace_index"], small["prompt_position"]))
        self._small = {name: column[order] for name, column in small.items()}
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._batch = np.searchsorted(starts, order, side="right") - 1
        self._row = order - starts[self._batch]

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: int) -> TrainingTrace:
        batch, row = self._batch[index], int(self._row[index])
        small = {name: column[index].item() for name, column in self._small.items()}
        return TrainingTrace(
            prompt_position=small["prompt_position"],
            trace_index=small["trace_index"],
            response_ids=self._tokens[batch][row],
            behaviour_logprobs=self._logprobs[batch][row],
            reward=small["reward"],
            outcome=Outcome(small["outcome"]),
        )

    @property
    def prompt_positions(self) -> Array:
        """Position of each trace's prompt in the data set, int32."""
        positions: Array = self._small["prompt_position"]
        return positions

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the traces' prompt positions, indices and tokens."""
        digest = hashlib.blake2b(digest_size=8)
        for name in ("prompt_position", "trace_index", "digest"):
            digest.update(np.ascontiguousarray(self._small[name]).tobytes())
        return digest.hexdigest()


class _Lists:
    """Lists of an Arrow column, as views of its values."""

    def __init__(self, column: Any) -> None:
        self._values: Array = column.values.to_numpy(zero_copy_only=True)
        self._offsets: Array = column.offsets.to_numpy(zero_copy_only=True)

    def __getitem__(self, row: int) -> Array:
        view: Array = self._values[self._offsets[row] : self._offsets[row + 1]]
        return view
