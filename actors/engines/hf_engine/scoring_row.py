"""Row of a scoring pass: prompts with their responses, each prompt once.

All layers except attention process each token independently. They process a prompt once for all of its responses, and
attention processes it once per response.

Shape letters: S tokens of the row, M responses, E tokens of the M sequences in attention, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlad.contracts import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoringRow:
    """Concatenated prompts, each followed by its responses.

    The last token of a response is a target only, so the row does not contain it.

    Attributes:
        token_ids: Tokens, int64 [S].
        position_ids: Position of each token in its sequence, int64 [S].
        predicting: Row position that predicts each target, int64 [T].
        target_ids: Tokens of all responses, in order, int64 [T].
        sequence_offsets: Start of each sequence (prompt and response) and the end of the last, int32 [M + 1].
        sources: Row position of each sequence token, int64 [E]. None if no prompt is shared; E is then S.
        places: One sequence position of each row token, int64 [S]. None if `sources` is None.
    """

    token_ids: Array
    position_ids: Array
    predicting: Array
    target_ids: Array
    sequence_offsets: Array
    sources: Array | None
    places: Array | None


def scoring_row(prompts: Sequence[tuple[Array, Sequence[Array]]]) -> ScoringRow:
    """Return the row of prompts and their responses.

    Args:
        prompts: Prompts, int32 [P] each, with their responses, int32 [N] each, N at least 1.
    """
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
            # A position predicts the next token. The last token of the prompt predicts the first of each response.
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
