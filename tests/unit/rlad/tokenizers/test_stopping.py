"""Responses end at every end-of-sequence token, at the template's end of turn, and where the configuration says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlad.tokenizers.stopping import end_of_turn, generation_end_ids, stop_rules

from .chat_tokenizer import CHATML, SPECIAL, chat_tokenizer

EOS, IM_END = SPECIAL.index("<eos>"), SPECIAL.index("<|im_end|>")
LOOP = "{%% for m in messages %%}%s{%% endfor %%}"
STRICT = "{% if messages[0].role == 'user' %}{{ raise_exception('no') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, IM_END),
        (LOOP % "[{{ m.role }}] {{ m.content | trim }}<eos>", EOS),
        (LOOP % "{{ m.content }}<|im_end|>\n<eos>", IM_END),  # the first one ends the turn
        (LOOP % "{{ m.role }}: {{ m.content }}\n[/INST] ", "[/INST]"),  # no token of its own
        (LOOP % "{{ m.content }}</s><|im_end|>", "</s>"),
        (LOOP % "{{ m.content }};", "is a token of one letter"),
        (LOOP % "{{ m.role }}: {{ m.content }}\n", None),
        (LOOP % "{{ m.role }}", None),
        (STRICT + CHATML, None),
        (None, None),
    ],
)
def test_end_of_turn_of_a_template(template: str | None, end: int | str | None) -> None:
    tokenizer = chat_tokenizer(template)
    expected = tokenizer.convert_tokens_to_ids(";") if end == "is a token of one letter" else end
    assert end_of_turn(tokenizer, {}) == expected


def test_end_of_turn_depends_on_arguments() -> None:
    tokenizer = chat_tokenizer(LOOP % "{{ m.content }}{% if plain %}<eos>{% else %}<|im_end|>{% endif %}")
    assert (end_of_turn(tokenizer, {}), end_of_turn(tokenizer, {"plain": True})) == (IM_END, EOS)


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"generation_config.json": [7, 3], "config.json": 5}, [7, 3]),
        ({"generation_config.json": None, "config.json": 5}, [5]),
        ({"config.json": [5, 6]}, [5, 6]),
        ({}, []),
    ],
)
def test_every_end_of_the_generation_configuration_counts(
    tmp_path: Path, files: dict[str, object], ids: list[int]
) -> None:
    for name, end in files.items():
        (tmp_path / name).write_text(json.dumps({} if end is None else {"eos_token_id": end}))
    assert generation_end_ids(tmp_path) == ids


def test_rules_join_all_ends_once(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 1]}')
    rules = stop_rules(
        chat_tokenizer(CHATML), tmp_path, template_arguments={}, token_ids=[8, 9], strings=["</answer>", "</answer>"]
    )
    assert rules.token_ids == (EOS, IM_END, 8, 9)
    assert rules.strings == ("</answer>",)
    text_end = stop_rules(chat_tokenizer(LOOP % "{{ m.content }}[/I]"), tmp_path, template_arguments={}, strings=["x"])
    assert (text_end.token_ids, text_end.strings) == ((EOS, 9), ("x", "[/I]"))
