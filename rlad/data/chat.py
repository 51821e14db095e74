"""Encoding of prompt records as token ids, and fingerprints of tokenizers and chat templates."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlad.data.records import Message, PromptRecord
from rlad.errors import DataError
from rlad.tokenizers.template_arguments import rendered, require_template_arguments
from rlad.tokenizers.vocabulary import tokenization_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Turn markers of common chat templates. In a message's content they show that a template was already applied, possibly
# that of another model.
_TEMPLATE_MARKERS = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<\|start_header_id\|>|<\|eot_id\|>|<\|begin_of_text\|>|<start_of_turn>|<end_of_turn>|\[INST\]|\[/INST\]"
    r"|<\|user\|>|<\|assistant\|>|<\|system\|>|<\|endoftext\|>|<｜User｜>|<｜Assistant｜>"
)


# Each takes a quarter of a second for a large vocabulary.
_MOST_PREFIXES = 64

# Tags that prompts ask for. A tokenizer that marks them as special tokens is no sign of an applied template.
_TAGS = frozenset({"<think>", "</think>", "<answer>", "</answer>"})


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[PromptRecord],
    max_tokens: int,
    template_arguments: Mapping[str, Any] = MappingProxyType({}),
) -> list[npt.NDArray[np.int32]]:
    """Encode prompts as token ids.

    Messages go through the tokenizer's chat template once, with the header of the assistant's turn at the end. Text is
    encoded verbatim, without template or special tokens, so text that needs a start token must contain it.

    Args:
        tokenizer: Tokenizer of the student.
        records: Prompts to encode.
        max_tokens: Maximum tokens of a prompt.
        template_arguments: Further arguments of the chat template, such as `enable_thinking`.

    Returns:
        Token ids of each prompt, int32 [P].

    Raises:
        DataError: A prompt is empty or longer than `max_tokens`, has symbols that the tokenizer does not know, consists
            of messages although the tokenizer has no chat template, or contains markers of an applied template.
        ConfigError: The chat template does not use an argument.
    """
    require_template_arguments(tokenizer, template_arguments)
    special_tokens = _special_tokens(tokenizer)
    encoded = []
    for record in records:
        ids = np.asarray(_encode(tokenizer, record, special_tokens, template_arguments), dtype=np.int32)
        if not 0 < len(ids) <= max_tokens:
            raise DataError(
                f"prompt {record.id!r} has {len(ids)} tokens, expected 1 to {max_tokens}; raise max_prompt_tokens or "
                "remove the prompt (prompts are never truncated, because that can change the answer)"
            )
        encoded.append(ids)
    return encoded


def _encode(
    tokenizer: Any, record: PromptRecord, special_tokens: Sequence[str], template_arguments: Mapping[str, Any]
) -> list[int]:
    text = (
        record.prompt
        if isinstance(record.prompt, str)
        else _apply_template(tokenizer, record.id, record.prompt, special_tokens, template_arguments)
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids and tokenizer.unk_token not in text:
        raise DataError(
            f"prompt {record.id!r} has symbols that the tokenizer does not know; "
            f"check that it was written for this model. It begins {text[:80]!r}"
        )
    return ids


def _apply_template(
    tokenizer: Any,
    prompt_id: str,
    messages: Sequence[Message],
    special_tokens: Sequence[str],
    template_arguments: Mapping[str, Any],
) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            f"prompt {prompt_id!r} consists of chat messages, but the tokenizer has no chat template; "
            "use a model with a chat template, or provide the prompts as text"
        )
    for message in messages:
        match = _TEMPLATE_MARKERS.search(message["content"])
        marker = match[0] if match else next((token for token in special_tokens if token in message["content"]), None)
        if marker in _TAGS:
            raise DataError(
                f"prompt {prompt_id!r}: a message contains {marker!r}, which this tokenizer marks as a special token; "
                'set `"special": false` for it in tokenizer.json and tokenizer_config.json, or leave it out'
            )
        if marker:
            raise DataError(
                f"prompt {prompt_id!r}: a message contains the template marker {marker!r}, so the chat template would "
                "be applied twice; provide bare content in messages, or the complete prompt as text"
            )
    try:
        text = rendered(
            tokenizer, [dict(message) for message in messages], template_arguments, add_generation_prompt=True
        )
    except (TemplateError, ValueError) as error:
        raise DataError(f"prompt {prompt_id!r}: the tokenizer's chat template rejects the messages: {error}") from error
    return text


def _special_tokens(tokenizer: Any) -> list[str]:
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *tokenizer.all_special_tokens})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase | str | Path) -> str:
    """Return sixteen hexadecimal digits that are equal for tokenizers with the same vocabulary and tokenization model.

    The fingerprint covers every token with its id, including special and added tokens, and the tokenization model (its
    type, merges or scores). It does not cover paths, the chat template, padding, or the end-of-sequence token. A base
    model and its chat model differ in the latter, and one can teach the other.

    Args:
        tokenizer: A loaded tokenizer, or the directory of a model.

    Raises:
        DataError: The directory has no tokenizer.
    """
    loaded: Any = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    return _vocabulary_digest(loaded.get_vocab(), json.dumps(tokenization_model(loaded), sort_keys=True))


def prefix_fingerprints(tokenizer: PreTrainedTokenizerBase | str | Path) -> tuple[str, ...]:
    """Return the fingerprints of the tokenizers whose ids this one shares: those without its last added tokens.

    A teacher can score a student with one of them. Qwen3's tokenizer, for example, is Qwen2.5's with four more tokens.
    """
    loaded: Any = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    ids: dict[str, int] = loaded.get_vocab()
    model = json.dumps(tokenization_model(loaded), sort_keys=True)
    added = sorted(loaded.added_tokens_decoder, reverse=True)
    found, end = [], max(ids.values(), default=-1)
    for token_id in added[:_MOST_PREFIXES]:
        if token_id != end:  # a token that is not added has a larger id
            break
        found.append(_vocabulary_digest({token: each for token, each in ids.items() if each < token_id}, model))
        end -= 1
    return tuple(found)


def template_fingerprint(
    tokenizer: PreTrainedTokenizerBase, template_arguments: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """Return sixteen hexadecimal digits of the chat template and its arguments. No template equals an empty one."""
    template: Any = tokenizer.chat_template
    arguments = [json.dumps(dict(template_arguments), sort_keys=True)] if template_arguments else []
    return _hexdigest([json.dumps(template or "", sort_keys=True), *arguments])


def load_tokenizer(path: str | Path) -> Any:
    """Load the tokenizer of a model directory.

    Raises:
        DataError: The directory has no tokenizer that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no tokenizer can be loaded from {path}; expected a model directory with tokenizer files: {error}"
        ) from error


def _vocabulary_digest(ids: Mapping[str, int], model: str) -> str:
    return _hexdigest([json.dumps(sorted(ids.items())), model])


def _hexdigest(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()
