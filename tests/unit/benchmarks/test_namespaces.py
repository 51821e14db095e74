"""Network namespaces whose link can be cut, lose packets and delay them."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.chaos.network.namespaces import Impairment, Network, inside, network, reason_to_skip
from benchmarks.chaos.network.relay import relay

needs_namespaces = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))


class Relayed:
    """A relay in a thread, between two sockets that keep the borders of packets, as TUN devices do."""

    def __init__(self) -> None:
        self.left, self._first = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.right, self._second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reading, self._commands = os.pipe()
        self._thread = threading.Thread(
            target=relay, args=(self._first.fileno(), self._second.fileno(), self._reading), daemon=True
        )
        self._thread.start()

    def impair(self, impairment: Impairment) -> None:
        os.write(self._commands, (json.dumps(asdict(impairment)) + "\n").encode())

    def received(self, *, within_s: float) -> list[bytes]:
        """Return the packets that arrive on the right, until none arrives for a time."""
        packets = []
        while select.select([self.right], [], [], within_s)[0]:
            packets.append(self.right.recv(100))
        return packets

    def close(self) -> None:
        os.close(self._commands)
        self._thread.join(10)
        assert not self._thread.is_alive()
        for each in (self.left, self._first, self.right, self._second):
            each.close()
        os.close(self._reading)


@pytest.fixture
def relayed(capfd: pytest.CaptureFixture[str]) -> Iterator[tuple[Relayed, Callable[[Impairment], None]]]:
    relayed = Relayed()

    def impair(impairment: Impairment) -> None:
        relayed.impair(impairment)
        deadline = time.monotonic() + 10
        while "ok" not in capfd.readouterr().out:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    yield relayed, impair
    relayed.close()


def test_cut_link_delivers_nothing_and_a_healed_one_does(relayed) -> None:
    link, impair = relayed
    impair(Impairment(is_cut=True))
    link.left.send(b"lost")
    assert link.received(within_s=0.2) == []
    impair(Impairment())
    link.left.send(b"arrives")
    assert link.received(within_s=1.0) == [b"arrives"]


def test_share_of_packets_is_lost_and_the_rest_keeps_its_order(relayed) -> None:
    """Loss 0.3 drops 120 of 400 packets on average, with a standard deviation of 9.2."""
    link, impair = relayed
    impair(Impairment(loss=0.3))
    arrived: list[bytes] = []
    for number in range(400):
        link.left.send(str(number).encode())
        if number % 5 == 4:  # a socket holds few packets
            arrived += link.received(within_s=0.0)
    arrived += link.received(within_s=1.0)
    numbers = [int(packet) for packet in arrived]
    assert numbers == sorted(set(numbers))
    assert 240 <= len(numbers) <= 320


def test_delayed_packets_arrive_late_and_are_not_overtaken(relayed) -> None:
    link, impair = relayed
    impair(Impairment(delay_s=0.2))
    began = time.monotonic()
    link.left.send(b"first")
    # The relay has read it when it answers: it reads the devices and the commands in turn.
    while select.select([link._first], [], [], 0)[0]:
        assert time.monotonic() < began + 10
    impair(Impairment())
    link.left.send(b"second")
    assert link.received(within_s=5.0) == [b"first", b"second"]
    assert time.monotonic() - began >= 0.2


@needs_namespaces
def test_link_of_two_namespaces_is_cut_and_healed() -> None:
    with network() as net, _socket_in(net, "near") as near, _socket_in(net, "far") as far:

        def arrives(*, within_s: float) -> bool:
            near.sendto(b"x", (net.far.address, far.getsockname()[1]))
            return bool(select.select([far], [], [], within_s)[0]) and far.recv(10) == b"x"

        before = net.far.received_bytes()
        assert arrives(within_s=10)
        assert net.far.received_bytes() > before
        net.link.impair(Impairment(is_cut=True))
        cut = net.far.received_bytes()
        assert not arrives(within_s=0.3)
        assert net.far.received_bytes() == cut
        net.link.impair(Impairment())
        assert arrives(within_s=10)


@needs_namespaces
def test_namespaces_end_with_all_their_processes() -> None:
    with pytest.raises(RuntimeError, match="the run failed"), network() as net:
        process = subprocess.Popen(net.far.program("sleep", "600"))
        raise RuntimeError("the run failed")
    assert process.wait(10) == -9
    assert not [name for name in (net.near.name, net.far.name) if Path("/run/netns", name).exists()]


def _socket_in(net: Network, side: str) -> socket.socket:
    namespace = getattr(net, side)
    with inside(namespace):
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found.bind((namespace.address, 0))
    return found
