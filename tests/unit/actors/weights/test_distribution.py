"""Order in which a node fetches published objects."""

from __future__ import annotations

from actors.weights.distribution import IN_FLIGHT, fetch_in_turns, fetch_order


def test_order_is_a_rotation_that_depends_on_the_node() -> None:
    orders = [fetch_order(50, f"node-{number}") for number in range(20)]
    for order in orders:
        assert order == [(order[0] + place) % 50 for place in range(50)]
    assert len({order[0] for order in orders}) > 10
    assert fetch_order(50, "node-3") == orders[3]
    assert fetch_order(0, "node-3") == []


def test_values_are_in_the_order_of_the_references_and_few_are_requested_at_a_time() -> None:
    requests: list[list[int]] = []

    def get(some: list[int]) -> list[int]:
        requests.append(some)
        return [10 * ref for ref in some]

    assert fetch_in_turns(range(11), "node", get) == [10 * ref for ref in range(11)]
    assert [ref for request in requests for ref in request] == fetch_order(11, "node")
    assert max(map(len, requests)) == IN_FLIGHT
    assert fetch_in_turns([], "node", get) == []
