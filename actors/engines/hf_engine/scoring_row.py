"""The row of a scoring pass: prompts with the responses to each, every prompt's tokens once.

A model's layers look at a token by itself, but for attention: so a prompt goes through them once for all its responses, and only attention sees it again
in front of each.

Shape letters: S tokens of the row, M responses, E tokens of the M sequences that attention sees, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlad.contracts import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoringRow:
    """Prompts, each with responses, end to end. The last token of a response is only a target, so the row does not hold it.

    Attributes:
        token_ids, position_ids: int64 [S].
        predicting: int64 [T], the row's position that predicts each target.
        target_ids: int64 [T], the tokens of all responses in their order.
        sequence_offsets: int32 [M + 1], of the sequences: prompt and response, end to end.
        sources: int64 [E], the row's token at each place of the sequences; None where no prompt is shared, and the sequences are the row.
        places: int64 [S], for each token of the row one of its places in the sequences; None like `sources`.
    """

    token_ids: Array
    position_ids: Array
    predicting: Array
    target_ids: Array
    sequence_offsets: Array
    sources: Array | None
    places: Array | None


def scoring_row(prompts: Sequence[tuple[Array, Sequence[Array]]]) -> ScoringRow:
    """The row of prompts, int32 [P] each, and the responses to each, int32 [N] with N at least 1."""
    tokens: list[Array] = []
    positions: list[Array] = []
    predicting: list[Array] = []
    sources: list[Array] = []
    end = 0
    for prompt, responses in prompts:
        of_prompt = np.arange(end, end + len(prompt))
        tokens.append(prompt)
        positions.append(np.arange(len(prompt)))
        end += len(prompt)
        for response in responses:
            own = np.arange(end, end + len(response) - 1)
            tokens.append(response[:-1])
            positions.append(len(prompt) + np.arange(len(own)))
            # Position p predicts the token behind it: the first of a response is predicted by the last of the prompt.
            predicting += [of_prompt[-1:], own]
            sources.append(np.concatenate([of_prompt, own]))
            end += len(own)
    is_shared = any(len(responses) > 1 for _, responses in prompts)
    of_sequences = np.concatenate(sources)
    places = np.empty(end, np.int64)
    places[of_sequences] = np.arange(len(of_sequences))
    return ScoringRow(
        token_ids=np.concatenate(tokens).astype(np.int64),
        position_ids=np.concatenate(positions),
        predicting=np.concatenate(predicting),
        target_ids=np.concatenate([response for _, responses in prompts for response in responses]).astype(np.int64),
        sequence_offsets=np.cumsum([0, *map(len, sources)], dtype=np.int32),
        sources=of_sequences if is_shared else None,
        places=places if is_shared else None,
    )
