"""Full-vocabulary distillation by hidden states: memory of the loss, measured, and bytes of the scores.

    python -m benchmarks.hidden_states

The memory is that of forward and backward at Qwen3's vocabulary and a hidden size of 64, without inputs. The bytes are
arithmetic over the records' columns.
"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.logprob_memory import HIDDEN, NUM_TOKENS, VOCABULARY, peak_bytes
from rlad.teacher.limits import scores_bytes

_TEACHER_HIDDEN = 4096
"""Hidden size of Qwen3-8B."""


def main(tokens: int = typer.Option(NUM_TOKENS, min=1, help="Tokens of the response.")) -> None:
    """Print memory and bytes of a response."""
    table = Table(title=f"A response of {tokens} tokens, {VOCABULARY} entries", title_justify="left")
    for column in ("", "log-probabilities", "hidden states"):
        table.add_column(column, justify="right" if column else "left")
    hidden = tokens * (2 * _TEACHER_HIDDEN + 4)
    full = scores_bytes(tokens, VOCABULARY)
    table.add_row(f"bytes, hidden size {_TEACHER_HIDDEN} in bfloat16 (arithmetic)", f"{full:,}", f"{hidden:,}")
    # The loss over log-probabilities has those of student and teacher, and a gradient, as [tokens, vocabulary] tensors.
    table.add_row("tensors of the loss, at least (arithmetic)", f"{3 * tokens * VOCABULARY * 4:,}", "as measured below")
    measured = peak_bytes("distilled", tokens)
    table.add_row(f"peak memory of the loss, hidden size {HIDDEN} in float32 (measured)", "", f"{measured:,}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
