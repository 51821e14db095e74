"""The limit on failed verifications, without a pool."""

from __future__ import annotations

import pytest

from actors.verifier.failures import FailureLimit
from rlad.contracts import Outcome
from rlad.errors import VerifierFailureError

C, W, T, E = Outcome.CORRECT, Outcome.WRONG, Outcome.TIMEOUT, Outcome.ERROR


def test_run_ends_above_the_fraction_with_the_verifiers_own_words() -> None:
    limit = FailureLimit(0.5)
    for _ in range(15):
        limit.record([C, E], [None, "KeyError: no such unit"])
    limit.record([W, T], [None, None])  # 16 of 32: at the limit
    with pytest.raises(VerifierFailureError) as raised:
        limit.record([E], ["KeyError: no such unit"])
    assert "17 of the latest 33 responses (error 16, timeout 1)" in str(raised.value)
    assert "KeyError: no such unit (16 times)" in str(raised.value)


def test_few_responses_and_old_failures_do_not_end_a_run() -> None:
    limit = FailureLimit(0.5)
    limit.record([E] * 16, [None] * 16)
    limit.record([C] * 240, [None] * 240)
    limit.record([E] * 112 + [C] * 144, [None] * 256)  # the first 16 have left the window


def test_timeouts_alone_name_the_setting() -> None:
    with pytest.raises(VerifierFailureError, match=r"32 of the latest 32 .* exceeded verifier_pool\.timeout_s"):
        FailureLimit(0.9).record([T] * 32, [None] * 32)


def test_limit_of_one_ends_no_run() -> None:
    FailureLimit(1.0).record([E] * 300, ["x"] * 300)
