"""Arguments of chat templates are applied, and refused where the template would ignore them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlad.config import ModelConfig
from rlad.data.chat import encode_prompts, template_fingerprint
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError, DataError
from rlad.tokenizers.template_arguments import used_arguments

from .chat_tokenizer import CHATML, chat_tokenizer

QWEN3 = (
    CHATML.removesuffix("{% endif %}")
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As Llama 3's: a default for an argument, a special token, a function of the environment, and a date.
LLAMA = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
    "{% set found = namespace(system='') %}{% if not messages %}{{ raise_exception('none') }}{% endif %}"
    "{% if tools is not none %}{{ tools }}{% endif %}{{ date_string }}" + CHATML
)


def encoded(tokenizer: Any, **arguments: Any) -> str:
    record = PromptRecord(id="p", prompt=({"role": "user", "content": "hi"},), task="t", answer="a")
    (ids,) = encode_prompts(tokenizer, [record], 1000, arguments)
    text: str = tokenizer.decode(ids)
    return text


def test_arguments_reach_the_template() -> None:
    tokenizer = chat_tokenizer(QWEN3)
    header = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert encoded(tokenizer) == encoded(tokenizer, enable_thinking=True) == header
    assert encoded(tokenizer, enable_thinking=False) == header + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("template", "used"),
    [
        (QWEN3, ["enable_thinking"]),
        (LLAMA, ["date_string", "tools"]),
        (CHATML, []),
        ("{{ bos_token }}{{ sep_token }}" + CHATML, []),
        ("{% generation %}{{ x }}{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}", ["x"]),
    ],
)
def test_names_of_arguments_exclude_what_every_template_gets(template: str, used: list[str]) -> None:
    tokenizer = chat_tokenizer(template)
    tokenizer.bos_token = "<pad>"
    assert used_arguments(tokenizer) == used


@pytest.mark.parametrize(
    ("template", "arguments", "message"),
    [
        (QWEN3, {"enable_thinkin": 1}, "does not use 'enable_thinkin'; it uses enable_thinking; did you mean"),
        (CHATML, {"enable_thinking": False}, "does not use 'enable_thinking'; it uses no arguments"),
        (CHATML, {"add_generation_prompt": False}, "'add_generation_prompt' cannot be set, because prompts always end"),
        (CHATML, {"messages": []}, "'messages' cannot be set, because the messages are those of the prompt"),
        (CHATML, {"eos_token": "x"}, "'eos_token' cannot be set, because it is the tokenizer's own"),
        (None, {"enable_thinking": False}, "the tokenizer has no chat template; remove the setting"),
    ],
)
def test_arguments_without_effect_are_refused(template: str | None, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encode_prompts(chat_tokenizer(template), [], 10, arguments)


def test_a_template_that_is_not_jinja_is_refused() -> None:
    with pytest.raises(DataError, match="not valid Jinja"):
        encode_prompts(chat_tokenizer("{% for"), [], 10, {"x": 1})


def test_the_default_of_named_templates_is_applied() -> None:
    tokenizer = chat_tokenizer(None)
    tokenizer.chat_template = {"default": QWEN3, "tool_use": "{{ never }}"}
    assert encoded(tokenizer, enable_thinking=False).endswith("</think>\n\n")
    tokenizer.chat_template = {"tool_use": "{{ never }}"}
    with pytest.raises(DataError, match="no `default`"):
        encoded(tokenizer)


def test_text_for_a_truth_value_is_refused() -> None:
    with pytest.raises(ValidationError, match="which a template takes for true; write true, false or null"):
        ModelConfig(path="m", chat_template_kwargs={"enable_thinking": "false"})
    assert ModelConfig(path="m", chat_template_kwargs={"effort": "low"}).chat_template_kwargs == {"effort": "low"}


def test_prompts_of_other_arguments_have_another_fingerprint() -> None:
    tokenizer = chat_tokenizer(QWEN3)
    prints = [template_fingerprint(tokenizer, arguments) for arguments in ({}, {"a": True}, {"a": False})]
    assert len(set(prints)) == 3
    assert prints[0] == template_fingerprint(tokenizer)
