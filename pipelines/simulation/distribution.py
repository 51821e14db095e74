"""Simulation of a weight update to many nodes: objects that nodes fetch from the origin and from each other.

Every node sends and receives at one bandwidth. Objects are sent one after the other, in the order of the requests. A
node can send an object as soon as it has all of it; the sender of a request is chosen at random among those nodes.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_ORIGIN = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Result of a simulated distribution.

    Attributes:
        transfers: Time until every node has every object, in transfers of one copy of all of them between two nodes.
        origin_copies: Copies of all objects that the origin sent.
    """

    transfers: float
    origin_copies: float


@lru_cache
def distribute(nodes: int, *, objects: int, in_flight: int | None, seed: int = 0) -> Distribution:
    """Simulate the distribution of `objects` objects of one size from an origin to `nodes` other nodes.

    Args:
        nodes: Nodes without the origin.
        objects: Number of objects.
        in_flight: Objects that a node requests at a time, from a random first one on. None requests all of them at
            once, in the same order on all nodes.
        seed: Seed of first objects and senders.
    """
    random = np.random.default_rng(seed)
    firsts = random.integers(objects, size=nodes + 1) if in_flight is not None else np.zeros(nodes + 1, int)
    held_by: list[list[int]] = [[_ORIGIN] for _ in range(objects)]
    sends_at, receives_at = [0.0] * (nodes + 1), [0.0] * (nodes + 1)
    requested = [0] * (nodes + 1)
    from_origin, ended_at, order = 0, 0.0, itertools.count()
    arrivals: list[tuple[float, int, int, int]] = []  # a heap of time, order of the request, node, object

    def request(node: int, now: float) -> None:
        nonlocal from_origin
        place = int(firsts[node] + requested[node]) % objects
        requested[node] += 1
        sender = held_by[place][int(random.integers(len(held_by[place])))]
        from_origin += sender == _ORIGIN
        arrives_at = max(now, sends_at[sender], receives_at[node]) + 1 / objects
        sends_at[sender] = receives_at[node] = arrives_at
        heapq.heappush(arrivals, (arrives_at, next(order), node, place))

    for _ in range(min(objects, in_flight or objects)):
        for node in range(1, nodes + 1):
            request(node, 0.0)
    while arrivals:
        ended_at, _, node, place = heapq.heappop(arrivals)
        held_by[place].append(node)
        if requested[node] < objects:
            request(node, ended_at)
    return Distribution(transfers=ended_at, origin_copies=from_origin / objects)
