"""Decoding of responses as verifiers read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer


class ResponseDecoder:
    """Decodes token ids without special tokens, except those that are tags of the thinking or the answer.

    Some models have `<think>` as a special token. Without it a verifier would read the thinking as the answer.
    """

    def __init__(self, tokenizer: Tokenizer, kept: Iterable[str] = ()) -> None:
        """
        Args:
            tokenizer: The student's fast tokenizer.
            kept: Texts of special tokens that stay in the text.
        """
        self._tokenizer, kept = tokenizer, set(kept)
        self._dropped = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content not in kept
        )

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of responses."""
        kept = [[token_id for token_id in ids if token_id not in self._dropped] for ids in responses]
        texts: list[str] = self._tokenizer.decode_batch(kept, skip_special_tokens=False)
        return texts
