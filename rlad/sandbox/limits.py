"""Limits of a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mechanism = Literal["namespaces", "landlock", "seccomp"]
MECHANISMS: tuple[Mechanism, ...] = ("namespaces", "landlock", "seccomp")
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Resource limits of one program: of all its processes and threads together.

    Attributes:
        wall_s: Wall time in seconds.
        cpu_s: CPU time of all processes and threads, in whole seconds.
        memory_mib: Address space of a process, and memory of all processes together, in MiB.
        file_mib: Maximum size of a file that it writes, standard output included, in MiB.
        processes: Maximum number of concurrent processes and threads, including the program itself.
        disk_mib: Maximum size of all files in its directory together, in MiB.
        mechanisms: Kernel mechanisms to use where the kernel permits them. Tests use fewer.
    """

    wall_s: float
    cpu_s: int = 5
    memory_mib: int = 1024
    file_mib: int = 8
    processes: int = 8
    disk_mib: int = 64
    mechanisms: tuple[Mechanism, ...] = MECHANISMS
