"""Facts that `rlad doctor` collects. The checks are functions of these records alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.environment.packages import Packages


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """GPU of this machine."""

    name: str
    memory_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemory:
    """File system of shared memory, which holds Ray's objects and the weight files of rollout workers."""

    path: str
    total_gib: float
    free_gib: float
    is_writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Hardware and system software.

    Attributes:
        python: Version of Python.
        cpus: Number of CPUs.
        memory_gib: Memory, GiB.
        driver: Version of NVIDIA's driver; None without one.
        gpus: GPUs that the driver reports.
        shared_memory: Shared memory.
        compilers: C and C++ compilers that were found.
    """

    python: str
    cpus: int
    memory_gib: float
    driver: str | None
    gpus: tuple[Gpu, ...]
    shared_memory: SharedMemory
    compilers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Difference between two computations of the same log-probabilities, in nats.

    Attributes:
        mean: Mean absolute difference.
        largest: Largest absolute difference; None if it was not measured.
    """

    mean: float
    largest: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Result of a short run with every engine.

    Attributes:
        dtype: Data type of the weights in the engines.
        transport: Transport of weight updates.
        device: `GPU` or `CPU`.
        logits: Data type in which each vLLM engine computes logits, by pool.
        total_s: Seconds of the run, with the start of the engines.
        teacher_gap: Gap between learner and teacher, which is the same model, before the first weight update.
        learner_gaps: Gap between rollout engine and learner, before the first weight update and after each.
        update_s: Seconds of each weight update.
        learner_gib: Peak memory of the learner, GiB; None if it was not measured.
        planned_gib: The same as `rlad plan` computes it; None if the size of the model is unknown.
        error: Message of the error that ended the run; None if it succeeded.
    """

    dtype: str
    transport: str
    device: str
    logits: Mapping[str, str] = field(default_factory=dict)
    total_s: float = 0.0
    teacher_gap: Gap | None = None
    learner_gaps: tuple[Gap, ...] = ()
    update_s: tuple[float, ...] = ()
    learner_gib: float | None = None
    planned_gib: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Speeds of the cluster.

    Attributes:
        put_gb_s: Speed of writing to Ray's object store, GB/s; None if it could not be measured.
        gpus: Number of GPUs in the all-reduce.
        nccl_gb_s: Bus bandwidth of the all-reduce, GB/s; None without it.
        error: Message of the error that ended a measurement.
    """

    put_gb_s: float | None = None
    gpus: int = 0
    nccl_gb_s: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Isolation of programs, as `rlad doctor sandbox` reports it.

    Attributes:
        isolation: Strongest isolation that holds.
        problems: Properties that do not hold.
    """

    isolation: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts. `trial` and `links` are None if the engines were not started."""

    packages: Packages
    machine: Machine
    sandbox: Sandbox
    trial: Trial | None = None
    links: Links | None = None
