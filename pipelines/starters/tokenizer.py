"""Tokenizer of the starter models: one token per character."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlad.data.knights_knaves.compact import ALPHABET

PAD, END, UNKNOWN = "<pad>", "$", "!"
_SPECIAL = (PAD, END, UNKNOWN)

VOCABULARY: dict[str, int] = {symbol: index for index, symbol in enumerate((*_SPECIAL, *ALPHABET))}
"""Token ids by symbol: special tokens, then the alphabet of the compact notation."""

PAD_ID, END_ID = VOCABULARY[PAD], VOCABULARY[END]

assert not set(_SPECIAL) & set(ALPHABET)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a fast tokenizer for the compact alphabet.

    It adds no special tokens and has no chat template, because prompts are plain text. Characters outside the alphabet
    become the unknown token `!`.
    """
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    # A dot would not match line ends, which would then be merged with their neighbor.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # no spaces between characters
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def encode(text: str) -> list[int]:
    """Return the token ids of a text, equal to those of the tokenizer but faster.

    Raises:
        KeyError: The text has a character outside the alphabet (which includes the end `$`).
    """
    return [VOCABULARY[character] for character in text]
