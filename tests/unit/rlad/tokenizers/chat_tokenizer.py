"""A tokenizer with one character per token, for tests of chat templates."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
LETTERS = [*(chr(code) for code in range(32, 127)), "\n"]


def chat_tokenizer(template: str | None, *, special: list[str] = SPECIAL, eos: str = "<eos>") -> Any:
    """Return a tokenizer of these special tokens, in order, and the letters after them."""
    vocabulary = [*special, *LETTERS]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="~"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, eos_token=eos, pad_token="<pad>")
