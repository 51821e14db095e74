"""Ends of responses: the stop tokens and stop strings at which sampling ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlad.tokenizers.template_arguments import rendered

# Content of a message whose end is looked up in the rendered template. Templates strip spaces, so it has none.
_CONTENT = "contentofthemessage"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """Rules by which a response ends before its token budget.

    Attributes:
        token_ids: Tokens that end a response, ascending. The token stays in the response.
        strings: Texts that end a response. The tokens up to the one that completes the text stay in the response.
    """

    token_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()


NO_STOP_RULES = StopRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTokens:
    """Tokens with a special role in sampling.

    Attributes:
        stop: Ends of responses.
        vocabulary_size: Number of token ids. Later entries of the output layer are never sampled; None means that all
            entries are tokens.
    """

    stop: StopRules = NO_STOP_RULES
    vocabulary_size: int | None = None


def stop_rules(
    tokenizer: Any,
    model_directory: Path | str,
    *,
    template_arguments: Mapping[str, Any],
    token_ids: Iterable[int] = (),
    strings: Sequence[str] = (),
) -> StopRules:
    """Collect the ends of responses: end-of-sequence tokens, the template's end of turn, and configured ones.

    Args:
        tokenizer: Tokenizer of the prompts, whose chat template is applied.
        model_directory: Directory of the model that samples. All end-of-sequence tokens of its generation
            configuration, or of its configuration without one, end a response.
        template_arguments: Arguments of the chat template.
        token_ids: Configured stop tokens.
        strings: Configured stop strings.
    """
    ids = {*token_ids, *generation_end_ids(Path(model_directory))}
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    texts = list(dict.fromkeys(strings))
    end = end_of_turn(tokenizer, template_arguments)
    if isinstance(end, int):
        ids.add(end)
    elif end is not None and end not in texts:
        texts.append(end)
    return StopRules(token_ids=tuple(sorted(ids)), strings=tuple(texts))


def generation_end_ids(model_directory: Path) -> list[int]:
    """Return every `eos_token_id` of a model's generation configuration, or of its configuration without one."""
    for name in ("generation_config.json", "config.json"):
        path = model_directory / name
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        if found is not None:
            return [int(found)] if isinstance(found, int) else [int(each) for each in found]
    return []


def end_of_turn(tokenizer: Any, template_arguments: Mapping[str, Any]) -> int | str | None:
    """Return what the chat template writes after an assistant's message: a token, or a text that is no single token.

    Return None without a template, and for a template that ends messages with spaces only or rejects the messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _CONTENT}]
    try:
        text = rendered(tokenizer, messages, template_arguments, add_generation_prompt=False)
    except (TemplateError, ValueError):
        return None  # `encode_prompts` reports a template that cannot be applied
    before, content, after = text.rpartition(_CONTENT)
    end = after.strip()
    if not content or not before or not end:
        return None
    added = sorted(
        (
            (end.find(token.content), -len(token.content), token_id)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip() and token.content in end
        )
    )
    if added and added[0][0] == 0:
        return int(added[0][2])
    end = end[: added[0][0]].strip() if added else end
    ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if len(ids) == 1 and tokenizer.decode(ids) == end else end
