"""Order in which nodes fetch published objects, so that they pass them on to each other.

Ray fetches an object from a node that has all of it, chosen at random. Nodes that request all objects at once therefore
request all of them from the node that published them. If each node begins at another object and requests two at a
time, later requests find other nodes too: the origin sends about 1 + 1/2 + ... + 1/n copies to n nodes instead of n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

IN_FLIGHT = 2
"""Objects that a node requests at a time: two keep its network busy, and few find more locations."""

Get = Callable[[list[Any]], Sequence[Any]]
"""Returns the values of references, in their order."""


def fetch_order(count: int, node: str) -> list[int]:
    """Return the places of `count` objects in the order in which a node fetches them, from a place of its own on.

    Args:
        count: Number of objects.
        node: Id of the node, which determines the place.
    """
    if not count:
        return []
    first = int.from_bytes(hashlib.blake2b(node.encode(), digest_size=8).digest(), "little") % count
    return [*range(first, count), *range(first)]


def fetch_in_turns(refs: Sequence[Any], node: str, get: Get) -> list[Any]:
    """Return the values of references, in their order, fetched a few at a time in the node's own order."""
    found: list[Any] = [None] * len(refs)
    order = fetch_order(len(refs), node)
    for start in range(0, len(order), IN_FLIGHT):
        places = order[start : start + IN_FLIGHT]
        for place, value in zip(places, get([refs[place] for place in places]), strict=True):
            found[place] = value
    return found
