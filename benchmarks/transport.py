"""Transport benchmark: bytes per token, object store speed, copies at the reader, and memory of the driver.

python -m benchmarks.transport --json OUT
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import psutil
import ray
import typer
from rich.console import Console

from benchmarks.measure import JsonPath, Pairs, Ratio, Result, measure_pairs, seconds, show
from benchmarks.workload import scored_groups
from pipelines.run.progress import RunProgress
from rlad.contracts import Columns, ScoredGroup

# The response budget is the one that the paper uses for mathematics.
GROUP_SIZE, RESPONSE_TOKENS, PROMPT_TOKENS, VOCABULARY = 8, 30_000, 256, 151_936
BATCH_BYTES = 64 << 20
_STORE_BYTES = 512 << 20
# The first use of a page of the store is several times as slow as later ones. This number of batches fills the store.
_WARM_UPS = 2 * _STORE_BYTES // BATCH_BYTES
_DRIVER_BATCHES = 4
_TIMEOUT_S = 120.0


def make_batch(num_bytes: int) -> list[ScoredGroup]:
    """Return groups whose columns have `num_bytes` bytes in total."""
    one = scored_groups(
        [RESPONSE_TOKENS] * GROUP_SIZE, group_size=GROUP_SIZE, prompt_tokens=PROMPT_TOKENS, vocabulary=VOCABULARY
    )
    count = round(
        num_bytes / sum(array.nbytes for record in records_of(list(one.values())) for array in arrays_of(record))
    )
    groups = scored_groups(
        [RESPONSE_TOKENS] * GROUP_SIZE * count,
        group_size=GROUP_SIZE,
        prompt_tokens=PROMPT_TOKENS,
        vocabulary=VOCABULARY,
    )
    return list(groups.values())


def records_of(groups: Sequence[ScoredGroup]) -> list[Columns]:
    """Return the columns of every record of the groups; each record is one object in the store."""
    return [
        part.to_columns() for scored in groups for part in (scored.group, scored.teacher_scores) if part is not None
    ]


def arrays_of(record: Columns) -> list[np.ndarray[Any, Any]]:
    """Return the array columns of a record."""
    return [column for column in record.values() if isinstance(column, np.ndarray)]


class Producer:
    """Actor that returns groups, like a rollout worker."""

    def __init__(self) -> None:
        self._batch = records_of(make_batch(BATCH_BYTES))

    def groups(self) -> list[Columns]:
        return self._batch


class Reader:
    """Actor that reads groups, like a learner rank."""

    def private_bytes(self, refs: Sequence[ray.ObjectRef]) -> tuple[int, int]:
        """Return the bytes of all arrays, and of the arrays outside the memory shared with the object store."""
        records = [record for records in ray.get(list(refs), timeout=_TIMEOUT_S) for record in records]
        arrays = [array for record in records for array in arrays_of(record)]
        shared = list(_shared_mappings())
        private = sum(
            array.nbytes for array in arrays if not any(start <= array.ctypes.data < end for start, end in shared)
        )
        return sum(array.nbytes for array in arrays), private


def _shared_mappings() -> Iterator[tuple[int, int]]:
    """Yield the address ranges of this process that map files in shared memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, *_, name = line.split(maxsplit=5) if len(line.split()) > 5 else (*line.split(), "")
        if permissions.endswith("s") and ("/dev/shm" in name or "plasma" in name):
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield start, end


@contextmanager
def local_cluster() -> Iterator[None]:
    """Run a local Ray within the block."""
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_STORE_BYTES,
    )
    try:
        yield
    finally:
        ray.shutdown()


def put_and_get(objects: Sequence[Any]) -> float:
    """Return the seconds to put objects one by one and to get all of them. Freeing them is not counted."""
    started = time.perf_counter()
    refs = [ray.put(item) for item in objects]
    found = ray.get(refs, timeout=_TIMEOUT_S)
    elapsed = time.perf_counter() - started
    del found, refs
    return elapsed


def stored_bytes(records: Sequence[Columns]) -> int:
    """Return the bytes of records in the object store, with names and framing."""
    refs = [ray.put(record) for record in records]
    return sum(found["object_size"] for found in ray.experimental.get_object_locations(refs).values())


def driver_growth_bytes() -> tuple[int, int, int]:
    """Pass groups from one actor to another by reference.

    Returns:
        Bytes passed, bytes that the reader copied, and growth of this process in bytes.
    """
    producer, reader = ray.remote(num_cpus=0.5)(Producer).remote(), ray.remote(num_cpus=0.5)(Reader).remote()
    ray.get(
        reader.private_bytes.remote([producer.groups.remote()]), timeout=_TIMEOUT_S
    )  # excludes what Ray sets up at the first call
    before = psutil.Process().memory_full_info().uss
    refs = [producer.groups.remote() for _ in range(_DRIVER_BATCHES)]
    passed, copied = ray.get(reader.private_bytes.remote(refs), timeout=_TIMEOUT_S)
    growth = psutil.Process().memory_full_info().uss - before
    return passed, copied, max(0, growth)


def main(json: JsonPath = None, pairs: Pairs = 15) -> None:
    """Measure transport: bytes per token, put and get against memcpy, copies at the reader, and the driver's memory.

    Takes about half a minute.
    """
    console = Console()
    groups = make_batch(BATCH_BYTES)
    records, tokens = records_of(groups), sum(scored.group.num_tokens for scored in groups)
    arrays = [array for record in records for array in arrays_of(record)]
    num_bytes = sum(array.nbytes for array in arrays)
    per_token = sum(array.nbytes for array in arrays if len(array) == GROUP_SIZE * RESPONSE_TOKENS)
    source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)
    copy = partial(seconds, lambda: np.copyto(target, source))
    with RunProgress(console, total_steps=1) as progress, local_cluster():
        with progress.phase("put and get of 64 MiB, as one object and record by record", total=2 * pairs) as phase:
            first = measure_pairs(copy, partial(put_and_get, [records]), pairs=3, warm_ups=0)
            whole, single = (
                measure_pairs(
                    copy, partial(put_and_get, objects), pairs=pairs, warm_ups=_WARM_UPS, on_pair=phase.advance
                )
                for objects in ([records], records)
            )
        stored = stored_bytes(records)
        with progress.phase("groups from actor to actor"):
            passed, copied, growth = driver_growth_bytes()
    ratios = [
        Ratio(
            name="bytes_per_token",
            value=per_token / tokens,
            target=16,
            means="bytes per response token, over all token columns",
        ),
        Ratio(
            name="put_get_over_memcpy_speed",
            value=whole.ratio,
            target=0.5,
            side="at least",
            means="64 MiB of groups through the object store at once",
        ),
        Ratio(
            name="copied_share_at_reader",
            value=copied / passed,
            target=0,
            means="bytes that a reader in another process copies",
        ),
        Ratio(
            name="driver_growth_share",
            value=growth / passed,
            target=0.01,
            means="growth of the driver over the bytes whose references it passes on",
        ),
        Ratio(
            name="put_get_first_use_over_memcpy_speed",
            value=first.ratio,
            means="64 MiB at the first use of the store's pages",
        ),
        Ratio(
            name="put_get_records_over_memcpy_speed",
            value=single.ratio,
            means="64 MiB with each record as a separate object",
        ),
        Ratio(
            name="stored_bytes_per_token",
            value=stored / tokens,
            means="bytes per response token in the store, with prompts, offsets, names and framing",
        ),
    ]
    figures = {
        **whole.figures("memcpy", "put_get"),
        "memcpy_gb_per_s": num_bytes / whole.first_median_s / 1e9,
        "put_get_gb_per_s": num_bytes / whole.second_median_s / 1e9,
        "ms_per_record": 1e3 * single.second_median_s / len(records),
        "driver_growth_bytes": growth,
        "passed_bytes": passed,
    }
    settings = {
        "group_size": GROUP_SIZE,
        "response_tokens": RESPONSE_TOKENS,
        "records": len(records),
        "prompt_tokens": PROMPT_TOKENS,
        "batch_bytes": num_bytes,
    }
    show(Result(benchmark="transport", ratios=ratios, figures=figures, settings=settings), json, console)


if __name__ == "__main__":
    typer.run(main)
