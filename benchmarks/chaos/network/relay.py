"""Relay between two TUN devices that can drop and delay packets, for kernels without netem. A process of its own.

python -m benchmarks.chaos.network.relay DEVICE DEVICE

It creates both devices and prints `ready`. Each line on its standard input is an impairment as JSON (see
`benchmarks.chaos.network.namespaces.Impairment`) and is answered with `ok`. It ends with its standard input.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque

# From linux/if_tun.h: set up a device; a TUN device; without a header before each packet.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 1 << 16
# Packets that are read from a device before the other one has its turn.
_BATCH = 256


class _Direction:
    """Packets on their way from one device to the other. Their order is kept."""

    def __init__(self, source: int, target: int) -> None:
        self._source, self._target = source, target
        self._held: deque[tuple[float, bytes]] = deque()

    def take(self, *, loss: float, delay_s: float, chance: random.Random) -> None:
        """Read what has arrived, and send or hold what is not dropped."""
        for _ in range(_BATCH):
            try:
                packet = os.read(self._source, _PACKET_BYTES)
            except BlockingIOError:
                return
            if chance.random() < loss:
                continue
            if delay_s or self._held:
                self._held.append((time.monotonic() + delay_s, packet))
            else:
                self._send(packet)

    def release(self) -> float | None:
        """Send what is due. Return the time until the next packet is due, seconds; None without one."""
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            self._send(self._held.popleft()[1])
        return self._held[0][0] - now if self._held else None

    def _send(self, packet: bytes) -> None:
        try:
            os.write(self._target, packet)
        except OSError:  # the device is down, or its queue is full: the packet is lost, as in a network
            return


def relay(first: int, second: int, commands: int) -> None:
    """Forward packets between two devices until the commands end. The arguments are descriptors."""
    directions = {first: _Direction(first, second), second: _Direction(second, first)}
    chance, loss, delay_s = random.Random(0), 0.0, 0.0
    poll = select.poll()
    for descriptor in (*directions, commands):
        os.set_blocking(descriptor, False)
        poll.register(descriptor, select.POLLIN)
    while True:
        waits = [wait for each in directions.values() if (wait := each.release()) is not None]
        for descriptor, _ in poll.poll(min(waits) * 1000 if waits else None):
            if descriptor != commands:
                directions[descriptor].take(loss=loss, delay_s=delay_s, chance=chance)
                continue
            line = os.read(commands, 4096)
            if not line:
                return
            command = json.loads(line)
            loss, delay_s = 1.0 if command["is_cut"] else command["loss"], command["delay_s"]
            print("ok", flush=True)


def open_tun(name: str) -> int:
    """Create a TUN device in the network namespace of this process. It vanishes with its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


if __name__ == "__main__":
    left, right = (open_tun(name) for name in sys.argv[1:3])
    print("ready", flush=True)
    relay(left, right, sys.stdin.fileno())
