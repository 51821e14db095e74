"""Traces whose tokens encode their prompt and response."""

from __future__ import annotations

import numpy as np

from rlad.contracts import Outcome
from rlad.data.trace_records import Trace, TracedPrompt, TraceProvenance

PROVENANCE = TraceProvenance(
    teacher="t" * 32,
    teacher_path="starter:kk/teacher",
    tokenizer="a" * 16,
    template="b" * 16,
    dataset="c" * 16,
    traces_per_prompt=3,
    max_accepted_per_prompt=2,
    max_prompts=None,
    temperature=0.7,
    top_p=0.9,
    max_response_tokens=32,
)
R, W, U, T = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.TIMEOUT


def prompt(position: int, outcomes: tuple[Outcome, ...], kept: tuple[int, ...]) -> TracedPrompt:
    """Return a traced prompt. Response i of prompt p has tokens p, i and log-probabilities -p, -i."""
    return TracedPrompt(
        position=position,
        prompt_id=f"prompt-{position}",
        task="puzzle",
        traces=[
            Trace(
                trace_index=index,
                response_ids=np.array([position, index], np.int32),
                response_text=f"{position} {index}",
                behaviour_logprobs=np.array([-position, -index], np.float32),
                reward=1.0,
                outcome=R,
            )
            for index in kept
        ],
        outcomes=outcomes,
        num_tokens=2 * len(outcomes),
    )
