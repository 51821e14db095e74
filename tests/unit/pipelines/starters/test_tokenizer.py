"""The character tokenizer of the starter models."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipelines.starters.tokenizer import END, END_ID, PAD_ID, VOCABULARY, build_tokenizer, encode
from rlad.data.knights_knaves.compact import ALPHABET


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(directory)
    return directory


def test_saved_tokenizer_loads_with_auto_tokenizer_and_round_trips_the_alphabet(saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(saved))
    text = ALPHABET + ALPHABET[::-1] + END
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix(END)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (END_ID, PAD_ID, len(VOCABULARY))


def test_encode_equals_the_tokenizer(saved: Path) -> None:
    text = "A:b;B:A&c;C:~A;?TTT:FxTTF:FxTFT:TFT=TFT$"
    assert encode(text) == AutoTokenizer.from_pretrained(str(saved))(text)["input_ids"]


def test_each_character_outside_the_alphabet_becomes_the_unknown_token(saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(saved))
    ids = tokenizer("A\n é")["input_ids"]
    assert ids == [VOCABULARY["A"], *[tokenizer.unk_token_id] * 3]


def test_prompts_are_plain_text_without_a_chat_template(saved: Path) -> None:
    assert AutoTokenizer.from_pretrained(str(saved)).chat_template is None
