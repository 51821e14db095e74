"""The tokenizer of all starter models: one character a token."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlad.data.knights_knaves.compact import ALPHABET

PAD, END, UNKNOWN = "<pad>", "$", "!"
_SPECIAL = (PAD, END, UNKNOWN)

VOCABULARY: dict[str, int] = {symbol: index for index, symbol in enumerate((*_SPECIAL, *ALPHABET))}
"""Token ids by symbol: the special tokens first, then the alphabet of the compact notation."""

PAD_ID, END_ID = VOCABULARY[PAD], VOCABULARY[END]

assert not set(_SPECIAL) & set(ALPHABET)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer over the compact alphabet. It adds nothing to a text and has no chat template: prompts are plain text.

    A character outside the alphabet becomes the unknown token `!`.
    """
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    # Dot leaves out line ends, which would then stick to their neighbour.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # no spaces between characters
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def encode(text: str) -> list[int]:
    """Token ids of a text in the alphabet (the end `$` included), as `build_tokenizer` gives them, without its cost a call.

    Raises:
        KeyError: a character outside the alphabet.
    """
    return [VOCABULARY[character] for character in text]
