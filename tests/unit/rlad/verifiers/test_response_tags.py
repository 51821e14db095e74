"""Thinking and answer are recognised by the configured tags, also where those are special tokens."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from rlad.contracts import Outcome
from rlad.tokenizers.decoding import ResponseDecoder
from rlad.verifiers import MathAnswerVerifierConfig, MultipleChoiceVerifierConfig, VerifierConfig
from rlad.verifiers.response_tags import with_default_tags

OTHER: dict[str, Any] = {"think_tags": ["[THINK]", "[/THINK]"], "answer_tags": ["<|answer|>", "<|end_answer|>"]}


def outcome(config: VerifierConfig, response: str, answer: str) -> Outcome:
    assert isinstance(config, MathAnswerVerifierConfig | MultipleChoiceVerifierConfig)
    return config.build().verify(with_default_tags(response, config), answer).outcome


def test_configured_tags_decide_what_is_thinking() -> None:
    default, other = (MathAnswerVerifierConfig(name="math_answer", **tags) for tags in ({}, OTHER))
    response = r"[THINK]\boxed{7}[/THINK] \boxed{8}"
    assert outcome(other, response, "8") is Outcome.CORRECT
    assert outcome(other, r"[THINK]\boxed{8}", "8") is Outcome.UNPARSEABLE  # the thinking has not ended
    assert outcome(default, r"<think>\boxed{7}</think> \boxed{8}", "8") is Outcome.CORRECT
    assert outcome(default, r"<think>\boxed{8}", "8") is Outcome.UNPARSEABLE
    assert outcome(other, r"<think>\boxed{8}", "8") is Outcome.CORRECT  # ordinary text for this model


def test_configured_tags_decide_what_is_the_answer() -> None:
    other = MultipleChoiceVerifierConfig(name="multiple_choice", **OTHER)
    response = "A or B? <|answer|>B<|end_answer|>"
    assert outcome(other, response, "B") is Outcome.CORRECT
    assert outcome(other, response, "A") is Outcome.WRONG


@pytest.mark.parametrize(
    ("tags", "text", "expected"),
    [
        ({}, "<THINK>a</think><x>", "<THINK>a</think><x>"),
        (OTHER, "[THINK]a[/THINK]<think>", "<think>a</think><think >"),
        ({"think_tags": ["<t>", "<t>>"]}, "<t>a<t>>b<answer>c</answer>", "<think>a</think>b<answer>c</answer>"),
    ],
)
def test_tags_are_replaced_by_the_default_ones(tags: dict[str, Any], text: str, expected: str) -> None:
    assert with_default_tags(text, MathAnswerVerifierConfig(name="math_answer", **tags)) == expected


def test_equal_tags_are_refused() -> None:
    with pytest.raises(ValidationError, match="four different texts"):
        MathAnswerVerifierConfig(name="math_answer", think_tags=("<answer>", "</think>"))


def test_tags_that_are_special_tokens_stay_in_the_text() -> None:
    special = ["<eos>", "<think>", "</think>"]
    letters = {letter: number for number, letter in enumerate([*special, *"ab"])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    ids = [[1, 3, 2, 4, 0], [3]]
    assert tokenizer.decode_batch(ids) == ResponseDecoder(tokenizer).decode(ids) == ["ab", "a"]
    assert ResponseDecoder(tokenizer, ["<think>", "</think>"]).decode(ids) == ["<think>a</think>b", "a"]
