"""Texts of single tokens: which characters of a decoded text come from which token."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

# A character has at most 4 bytes, and a byte-level token at least one. Longer runs of tokens without a complete
# character are not text.
_MAX_TOKENS_PER_CHARACTER = 4
_REPLACEMENT = "\ufffd"


def token_texts(tokenizer: Tokenizer, token_ids: Sequence[int]) -> tuple[str, list[int]]:
    """Decode tokens, special tokens included, and find the end of each one in the text.

    A token that ends within a character has no text; the token that completes the character has it. The text is that of
    `Tokenizer.decode`, except where the tokens are not valid UTF-8.

    Args:
        tokenizer: The fast tokenizer.
        token_ids: The tokens.

    Returns:
        The text, and the end of each token in it, in characters.
    """
    pieces: list[str] = []
    ends: list[int] = []
    length = 0
    context, start = 0, 0  # decoded together with what follows: some decoders join a token to the one before it
    before = ""
    for index in range(len(token_ids)):
        window = tokenizer.decode(list(token_ids[context : index + 1]), skip_special_tokens=False)
        is_last = index + 1 == len(token_ids)
        is_complete = not window.endswith(_REPLACEMENT) or index + 1 - start >= _MAX_TOKENS_PER_CHARACTER
        if is_complete or is_last:
            piece = window[len(before) :]
            pieces.append(piece)
            length += len(piece)
            context, start = start, index + 1
            before = tokenizer.decode(list(token_ids[context:start]), skip_special_tokens=False)
        ends.append(length)
    return "".join(pieces), ends
