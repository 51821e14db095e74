"""Distribution of published objects to many nodes, in the simulation."""

from __future__ import annotations

import pytest

from actors.weights.distribution import IN_FLIGHT
from pipelines.simulation.distribution import Distribution, distribute


def test_one_node_gets_one_copy() -> None:
    found = distribute(1, objects=10, in_flight=2)
    assert (found.transfers, found.origin_copies) == (pytest.approx(1.0), 1.0)


def test_objects_that_all_nodes_request_at_once_come_from_the_origin() -> None:
    found = distribute(5, objects=8, in_flight=None)
    assert (found.transfers, found.origin_copies) == (pytest.approx(5.0), 5.0)


def test_two_nodes_by_hand() -> None:
    """The origin sends an object to each node until 0.5 and 1.0, and the other object to the first node until 1.5.

    The second node then has its other object from the first node at 1.5, or from the origin at 2.0. If both begin at
    the same object, all come from the origin.
    """
    seen = {distribute(2, objects=2, in_flight=1, seed=seed) for seed in range(40)}
    assert seen == {Distribution(transfers=1.5, origin_copies=1.5), Distribution(transfers=2.0, origin_copies=2.0)}


@pytest.mark.parametrize(("nodes", "harmonic"), [(7, 2.59), (40, 4.28), (127, 5.43)])
def test_origin_sends_about_the_harmonic_number_of_copies(nodes: int, harmonic: float) -> None:
    """1 + 1/2 + ... + 1/n for n nodes that each begin at another object; here they begin at random ones."""
    found = distribute(nodes, objects=244, in_flight=IN_FLIGHT)
    assert 1.0 <= found.origin_copies < 1.5 * harmonic
    assert found.transfers < 2 * harmonic
