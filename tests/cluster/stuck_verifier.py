"""A verifier that gets stuck. In a module of its own because the verifiers' processes import it, and should import nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rlad.contracts import Outcome
from rlad.verifiers import Verdict


@dataclass(frozen=True)
class StuckVerifier:
    """Never ends on responses that begin with F, and notes its process where the answer says; others are correct."""

    def verify(self, response_text: str, answer: str) -> Verdict:
        if response_text.startswith("F"):
            Path(answer).write_text(str(os.getpid()))
            while True:
                pass
        return Verdict(reward=1.0, outcome=Outcome.CORRECT)


@dataclass(frozen=True)
class StuckVerifierConfig:
    """Its settings, of the form that `build_verifier` takes."""

    def build(self) -> StuckVerifier:
        return StuckVerifier()
