"""From prompt records to token ids, the chat template applied exactly once; and fingerprints that tell tokenizers apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlad.data.records import Message, PromptRecord
from rlad.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Turn markers of the usual chat templates: in a message's content they mean that a template was applied before, perhaps another model's.
_TEMPLATE_MARKERS = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<\|start_header_id\|>|<\|eot_id\|>|<\|begin_of_text\|>|<start_of_turn>|<end_of_turn>|\[INST\]|\[/INST\]"
    r"|<\|user\|>|<\|assistant\|>|<\|system\|>|<\|endoftext\|>|<｜User｜>|<｜Assistant｜>"
)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[PromptRecord], max_tokens: int
) -> list[npt.NDArray[np.int32]]:
    """Token ids of each prompt, int32 [P].

    Messages go through the tokenizer's chat template, with the header of the assistant's turn at the end. Text is taken as it is: no template
    and no special token is added, so text that needs a start token carries it.

    Raises:
        DataError: naming the prompt: longer than `max_tokens`, of no tokens, with symbols the tokenizer does not know, of messages where the
            tokenizer has no chat template, or of messages into which a template is already baked.
    """
    special_tokens = _special_tokens(tokenizer)
    encoded = []
    for record in records:
        ids = np.asarray(_encode(tokenizer, record, special_tokens), dtype=np.int32)
        if not 0 < len(ids) <= max_tokens:
            raise DataError(
                f"prompt {record.id!r} has {len(ids)} tokens, allowed are 1 to {max_tokens}: raise max_prompt_tokens or take the prompt out "
                "(prompts are never shortened: a cut puzzle has another answer)"
            )
        encoded.append(ids)
    return encoded


def _encode(tokenizer: Any, record: PromptRecord, special_tokens: Sequence[str]) -> list[int]:
    text = (
        record.prompt
        if isinstance(record.prompt, str)
        else _apply_template(tokenizer, record.id, record.prompt, special_tokens)
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids and tokenizer.unk_token not in text:
        raise DataError(
            f"prompt {record.id!r} has symbols that the tokenizer does not know: was it written for another model? It begins {text[:80]!r}"
        )
    return ids


def _apply_template(tokenizer: Any, prompt_id: str, messages: Sequence[Message], special_tokens: Sequence[str]) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            f"prompt {prompt_id!r} is chat messages, but the tokenizer has no chat template: use a model with one, or give prompts as text"
        )
    for message in messages:
        baked = _TEMPLATE_MARKERS.search(message["content"])
        marker = baked[0] if baked else next((token for token in special_tokens if token in message["content"]), None)
        if marker:
            raise DataError(
                f"prompt {prompt_id!r}: a message contains the template marker {marker!r}, so the chat template would be applied twice: "
                "give the bare content in messages, or the whole as text"
            )
    try:
        text: str = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    except (TemplateError, ValueError) as error:
        raise DataError(f"prompt {prompt_id!r}: the chat template refuses it: {error}") from error
    return text


def _special_tokens(tokenizer: Any) -> list[str]:
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *tokenizer.all_special_tokens})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase | str | Path) -> str:
    """Sixteen hexadecimal digits, equal for tokenizers that share one vocabulary: the same text for every token id, made by the same model.

    Counts: every token with its id, special and added ones too, and the tokenization model (its kind, merges or scores). Does not count:
    paths, the chat template, padding, and which token serves as end of sequence (a base model and its chat sibling differ there, and one can
    teach the other).

    Args:
        tokenizer: loaded, or the directory of a model.

    Raises:
        DataError: no tokenizer at that path.
    """
    loaded: Any = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    model: dict[str, Any] = {}
    if loaded.is_fast:
        model = json.loads(loaded.backend_tokenizer.to_str())["model"]
        vocabulary = model.pop("vocab", None)
        if isinstance(vocabulary, list):  # unigram: scores decide how text is cut
            model["scores"] = vocabulary
    return _hexdigest([json.dumps(sorted(loaded.get_vocab().items())), json.dumps(model, sort_keys=True)])


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Sixteen hexadecimal digits of the chat template; of an empty one where there is none."""
    template: Any = tokenizer.chat_template
    return _hexdigest([json.dumps(template or "", sort_keys=True)])


def load_tokenizer(path: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer can be loaded from {path}: {error}") from error


def _hexdigest(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()
