"""Arguments of chat templates, such as `enable_thinking`, and the check that a template uses them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from rlad.errors import ConfigError, DataError

SETTING = "student.chat_template_kwargs"

# Arguments that rlad or the tokenizer passes to every template.
_RESERVED = {
    "messages": "the messages are those of the prompt",
    "add_generation_prompt": "prompts always end with the header of the assistant's turn",
    "continue_final_message": "prompts always end with the header of the assistant's turn",
}

# Special tokens, which are empty in a template where the tokenizer has none.
_SPECIAL_TOKENS = frozenset(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")) | {
    "additional_special_tokens"
}


def template_text(tokenizer: Any) -> str:
    """Return the chat template that is applied to prompts; empty without one. Of named templates it is `default`.

    Raises:
        DataError: The templates have names, and none is `default`.
    """
    template = tokenizer.chat_template or ""
    if isinstance(template, dict):
        if "default" not in template:
            raise DataError(
                f"the tokenizer has the chat templates {', '.join(sorted(template))} but no `default`; expected one"
            )
        template = template["default"]
    return str(template)


def used_arguments(tokenizer: Any) -> list[str]:
    """Return the names of the arguments that the chat template uses, without those that every template gets.

    Raises:
        DataError: The template is not valid Jinja.
    """
    from jinja2 import TemplateSyntaxError, meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    text = template_text(tokenizer)
    try:
        environment = _compile_jinja_template(text).environment
        names = meta.find_undeclared_variables(environment.parse(text))
    except TemplateSyntaxError as error:
        raise DataError(f"the tokenizer's chat template is not valid Jinja: {error}") from error
    return sorted(names - environment.globals.keys() - _RESERVED.keys() - _special_tokens(tokenizer))


def _special_tokens(tokenizer: Any) -> frozenset[str]:
    return _SPECIAL_TOKENS.union(tokenizer.special_tokens_map)


def require_template_arguments(tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the chat template does not use: it would ignore them silently.

    Raises:
        ConfigError: With the names that the template uses.
        DataError: The template is not valid Jinja.
    """
    if not arguments:
        return
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{SETTING}: got {', '.join(arguments)}, but the tokenizer has no chat template; remove the setting"
        )
    used = used_arguments(tokenizer)
    for name in arguments:
        if name in used:
            continue
        if name in _RESERVED:
            raise ConfigError(f"{SETTING}: {name!r} cannot be set, because {_RESERVED[name]}; remove it")
        if name in _special_tokens(tokenizer):
            raise ConfigError(f"{SETTING}: {name!r} cannot be set, because it is the tokenizer's own; remove it")
        nearest = difflib.get_close_matches(name, used, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(
            f"{SETTING}: the chat template does not use {name!r}; it uses {', '.join(used) or 'no arguments'}{hint}"
        )


def rendered(tokenizer: Any, messages: list[dict[str, Any]], arguments: Mapping[str, Any], **settings: Any) -> str:
    """Return messages after the chat template, as text.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Messages with `role` and `content`.
        arguments: Further arguments of the template.
        settings: Settings of `apply_chat_template`, such as `add_generation_prompt`.
    """
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, chat_template=template_text(tokenizer), **{**arguments, **settings}
    )
    return text
