"""Two network namespaces with a link that can be cut, lose packets and delay them. Needs root and iproute2.

The link is a veth pair with netem where the kernel has both. Elsewhere it is a TUN device in each namespace, and a
process that relays packets between them (`benchmarks.chaos.network.relay`).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import psutil

_ROOT = Path(__file__).parents[3]
_PREFIX = "rlad-chaos"
_NEAR_ADDRESS, _FAR_ADDRESS = "10.77.0.1", "10.77.0.2"
_MTU = 1500
_COMMAND_TIMEOUT_S, _END_TIMEOUT_S = 30.0, 15.0
_CLONE_NEWNET = 0x40000000  # from linux/sched.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """State of a link, equal in both directions.

    Attributes:
        is_cut: Whether no packet arrives.
        loss: Probability that a packet is lost.
        delay_s: Latency of a packet, seconds.
    """

    is_cut: bool = False
    loss: float = 0.0
    delay_s: float = 0.0


class Link(Protocol):
    """Link between two namespaces."""

    kind: str

    def impair(self, impairment: Impairment) -> None:
        """Change the state of the link."""

    def close(self) -> None:
        """Remove the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A network namespace.

    Attributes:
        name: Name, as `ip netns` shows it.
        device: Device of the link.
        address: Address of the device.
    """

    name: str
    device: str
    address: str

    def ip(self, *arguments: str) -> str:
        """Run iproute2's `ip` in the namespace, and return its output."""
        return _run("ip", "-n", self.name, *arguments)

    def start_device(self) -> None:
        """Give the device its address, and start it and the loopback device."""
        self.ip("address", "add", f"{self.address}/24", "dev", self.device)
        self.ip("link", "set", self.device, "mtu", str(_MTU), "txqueuelen", "10000", "up")
        self.ip("link", "set", "lo", "up")

    def received_bytes(self) -> int:
        """Return the number of bytes that have arrived over the link."""
        [found] = json.loads(self.ip("-json", "-statistics", "link", "show", "dev", self.device))
        return int(found["stats64"]["rx"]["bytes"])

    def program(self, *command: str) -> list[str]:
        """Return the command line that runs a program in the namespace."""
        return ["ip", "netns", "exec", self.name, *command]

    def kill_processes(self) -> None:
        """Kill every process in the namespace except this one, and wait until they have ended."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while pids := [pid for pid in map(int, _run("ip", "netns", "pids", self.name).split()) if pid != os.getpid()]:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes of {self.name} did not end within {_END_TIMEOUT_S:g} s: {pids}")
            time.sleep(0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Two namespaces and their link.

    Attributes:
        near: First namespace.
        far: Second namespace.
        link: Link between them.
    """

    near: Namespace
    far: Namespace
    link: Link


class NetemLink:
    """A veth pair whose ends have netem as their queueing discipline."""

    kind = "netem"

    def __init__(self, near: Namespace, far: Namespace) -> None:
        """
        Raises:
            CalledProcessError: The kernel has no veth devices or no netem.
        """
        self._ends = (near, far)
        near.ip(*("link", "add", near.device, "type", "veth"), *("peer", "name", far.device, "netns", far.name))
        self.impair(Impairment())
        for end in self._ends:
            end.start_device()

    def impair(self, impairment: Impairment) -> None:
        loss = 100.0 if impairment.is_cut else 100 * impairment.loss
        for end in self._ends:
            _run(
                *("tc", "-n", end.name, "qdisc", "replace", "dev", end.device, "root", "netem", "limit", "100000"),
                *("loss", "random", f"{loss:g}%", "delay", f"{1000 * impairment.delay_s:g}ms"),
            )

    def close(self) -> None:
        """The pair ends with its namespaces."""


class RelayLink:
    """A TUN device in each namespace, and the process that relays packets between them."""

    kind = "relay"

    def __init__(self, near: Namespace, far: Namespace) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos.network.relay", near.device, far.device],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        try:
            self._expect("ready")
            for end in (near, far):
                _run("ip", "link", "set", end.device, "netns", end.name)
                end.start_device()
        except BaseException:
            self.close()
            raise

    def impair(self, impairment: Impairment) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(impairment)) + "\n")
        self._expect("ok")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=_END_TIMEOUT_S)

    def _expect(self, answer: str) -> None:
        assert self._process.stdout is not None
        found = self._process.stdout.readline().strip()
        if found != answer:
            raise RuntimeError(f"the relay answered {found!r}, expected {answer!r}: see its message above")


def reason_to_skip() -> str | None:
    """Return why no namespaces can be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"iproute2 is not installed: no program {program!r}"
    probe = f"{_PREFIX}-{os.getpid()}-probe"
    try:
        _run("ip", "netns", "add", probe)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made: {error.stderr.strip()}"
    _run("ip", "netns", "delete", probe)
    return None


@contextmanager
def network() -> Iterator[Network]:
    """Make two namespaces with a link, and remove them at the end with every process in them.

    What a killed process has left is removed too.
    """
    _sweep()
    names = [f"{_PREFIX}-{os.getpid()}-{side}" for side in ("near", "far")]
    devices = [f"rc{os.getpid()}{side}" for side in "nf"]  # at most 15 characters
    near, far = (
        Namespace(name=name, device=device, address=address)
        for name, device, address in zip(names, devices, (_NEAR_ADDRESS, _FAR_ADDRESS), strict=True)
    )
    with ExitStack() as closing:
        for each in (near, far):
            closing.callback(_remove, each)
            _run("ip", "netns", "add", each.name)
        link = _open_link(near, far)
        closing.callback(link.close)
        yield Network(near=near, far=far, link=link)


@contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """Move this thread, and what it starts, into a namespace for the duration of the block."""
    with Path("/proc/thread-self/ns/net").open() as before, Path("/run/netns", namespace.name).open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _open_link(near: Namespace, far: Namespace) -> Link:
    try:
        return NetemLink(near, far)
    except subprocess.CalledProcessError:  # the kernel has no veth or no netem
        near_devices = near.ip("-brief", "link")
        if near.device in near_devices:
            near.ip("link", "delete", near.device)
        return RelayLink(near, far)


def _sweep() -> None:
    """Remove namespaces whose process has ended without removing them."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(f"{_PREFIX}-") and not psutil.pid_exists(int(name.split("-")[2])):
            _remove(Namespace(name=name, device="", address=""))


def _remove(namespace: Namespace) -> None:
    if Path("/run/netns", namespace.name).exists():
        namespace.kill_processes()
        _run("ip", "netns", "delete", namespace.name)


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S).stdout
