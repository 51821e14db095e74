"""Recorded cost of a run: `cost.json` in its directory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from pipelines.run.directory import RunDirectory
from rlad.config.monitoring.cost import CostConfig
from rlad.errors import CorruptFileError
from rlad.integrity.durable import write_atomically
from rlad.monitoring.cost import ReservedHours, RunCost


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRecord:
    """Cost of a run over all its attempts.

    Attributes:
        total: Hours of all pools, and their amount at the prices of the last attempt.
        pools: Reserved hours by pool.
        attempts: Number of times the run was started.
        budget: Limits of the last attempt by setting.
        warned_of: Limits whose warning was given, by setting.
        updated_at: Time of the record, seconds since the epoch.
    """

    total: RunCost
    pools: Mapping[str, ReservedHours]
    attempts: int
    budget: Mapping[str, float]
    warned_of: Mapping[str, float]
    updated_at: float


_JSON = TypeAdapter(CostRecord)


def read_cost(run: RunDirectory) -> CostRecord | None:
    """Return the recorded cost; None if there is none, as in runs of earlier versions.

    Raises:
        CorruptFileError: The record is damaged.
    """
    try:
        return _JSON.validate_json(run.cost.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise CorruptFileError(
            f"{run.cost} is damaged: {error.errors(include_url=False)[0]['msg']}. Restore it from a backup, or delete "
            "it: the cost of the earlier attempts is then not counted"
        ) from error


def write_cost(
    run: RunDirectory,
    settings: CostConfig,
    pools: Mapping[str, ReservedHours],
    *,
    attempts: int,
    warned_of: Mapping[str, float],
) -> None:
    """Record the cost of a run.

    Raises:
        StorageError: The disk refused the write.
    """
    record = CostRecord(
        total=settings.cost_of(pools),
        pools=pools,
        attempts=attempts,
        budget=settings.budget.limits(),
        warned_of=warned_of,
        updated_at=time.time(),
    )
    write_atomically(run.cost, _JSON.dump_json(record, indent=2) + b"\n")
