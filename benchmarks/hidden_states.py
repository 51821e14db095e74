"""Full-vocabulary distillation by hidden states: memory of the loss, measured, and bytes of the scores.

    python -m benchmarks.hidden_states

The memory is that of forward and backward at Qwen3's vocabulary and a hidden size of 64, without inputs. The bytes are
arithmetic over the records' columns.
"""

from __future__ import annotations

import typer
from rich.console import Console

from benchmarks.logprob_memory import HIDDEN, NUM_TOKENS, VOCABULARY, peak_bytes
from benchmarks.measure import JsonPath, Ratio, Result, show
from rlad.teacher.limits import scores_bytes

_TEACHER_HIDDEN = 4096
"""Hidden size of Qwen3-8B."""


def main(
    tokens: int = typer.Option(NUM_TOKENS, min=1, help="Tokens of the response."), json_path: JsonPath = None
) -> None:
    """Measure memory and compute bytes of the scores of a response."""
    full, hidden = scores_bytes(tokens, VOCABULARY), tokens * (2 * _TEACHER_HIDDEN + 4)
    # The loss over log-probabilities has those of student and teacher, and a gradient, as [tokens, vocabulary] tensors.
    materialised, measured = 3 * tokens * VOCABULARY * 4, peak_bytes("distilled", tokens)
    ratios = [
        Ratio(name="bytes", value=hidden / full, means="hidden states to log-probabilities (arithmetic)"),
        Ratio(name="memory", value=measured / materialised, means="measured peak to three full tensors"),
    ]
    figures = {
        "log-probabilities, bytes (arithmetic)": full,
        f"hidden states of {_TEACHER_HIDDEN} in bfloat16, bytes (arithmetic)": hidden,
        "three tensors of logits, bytes (arithmetic)": materialised,
        f"peak memory of the loss, hidden size {HIDDEN} in float32, bytes (measured)": measured,
    }
    settings = {"tokens": tokens, "vocabulary": VOCABULARY}
    result = Result(benchmark="hidden_states", ratios=ratios, figures=figures, settings=settings)
    show(result, json_path, Console())


if __name__ == "__main__":
    typer.run(main)
