"""Every token of a response has its own characters of the text."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rlad.tokenizers.token_texts import token_texts


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token a byte, and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<think>", "<eos>"])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    """Return a tokenizer of words, whose decoder drops the first space of a text."""
    words = ["▁the", "▁knight", "s", "▁is", "▁a", "▁knave", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    text, ends = token_texts(tokenizer, ids)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert not ids or ends[-1] == len(text)
    return [text[start:end] for start, end in itertools.pairwise([0, *ends])]


def test_character_of_several_tokens_belongs_to_the_last_one() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("aé→😀b").ids
    assert pieces(tokenizer, ids) == ["a", "", "é", "", "", "→", "", "", "", "😀", "b"]


def test_special_tokens_stay_in_the_text() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("<think>ok<eos>").ids
    assert pieces(tokenizer, ids) == ["<think>", "o", "k", "<eos>"]


def test_words_keep_their_spaces() -> None:
    assert pieces(metaspace_tokenizer(), [0, 1, 2, 3]) == ["the", " knight", "s", " is"]


@pytest.mark.parametrize("text", ["", "plain", "αβγ 😀😀 end", "x" * 300 + "é"])
def test_text_is_that_of_the_tokenizer(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text).ids
    assert token_texts(tokenizer, ids)[0] == tokenizer.decode(ids, skip_special_tokens=False) == text


def test_bytes_that_are_no_text_become_replacement_characters_before_the_text_after_them() -> None:
    """A student that is not trained samples any bytes."""
    tokenizer = byte_tokenizer()
    stray = tokenizer.encode("é").ids[1]
    found = pieces(tokenizer, [stray] * 48 + tokenizer.encode("ok").ids)
    assert "".join(found) == "\ufffd" * 48 + "ok"
    assert found[-2:] == ["o", "k"]
