"""Verifier that hangs.

It has its own module because the verifier processes import it and must not import anything heavy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rlad.contracts import Outcome
from rlad.verifiers import Verdict


@dataclass(frozen=True)
class StuckVerifier:
    """Verifier that never returns for responses that begin with F; all others are correct.

    Before it hangs, it writes its process id to the file that the answer names.
    """

    def verify(self, response_text: str, answer: str) -> Verdict:
        if response_text.startswith("F"):
            Path(answer).write_text(str(os.getpid()))
            while True:
                pass
        return Verdict(reward=1.0, outcome=Outcome.CORRECT)


@dataclass(frozen=True)
class StuckVerifierConfig:
    """Settings of `StuckVerifier`, as `build_verifier` expects them."""

    def build(self) -> StuckVerifier:
        return StuckVerifier()
