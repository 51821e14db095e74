"""The chat template is applied exactly once; fingerprints distinguish tokenizers by the meaning of their ids."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlad.data.chat import encode_prompts, template_fingerprint, tokenizer_fingerprint
from rlad.data.prompts import load_prompts
from rlad.data.records import PromptRecord
from rlad.errors import DataError

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% "
    "endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]


def make_tokenizer(*, letters: list[str] = LETTERS, eos: str = "<|im_end|>", template: str | None = CHATML) -> Any:
    """Return a tokenizer with one character per token.

    If special tokens are requested, it adds a start token, like Llama's.
    """
    vocabulary = [*SPECIAL, "?unknown?", *letters]
    backend = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="?unknown?")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": eos, "pad_token": "<pad>", "unk_token": "?unknown?"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, additional_special_tokens=["<|im_start|>"], **special
    )


def record(prompt: Any, record_id: str = "p1") -> PromptRecord:
    return PromptRecord(id=record_id, prompt=prompt, task="t", answer="a")


def chat(content: str) -> PromptRecord:
    return record(({"role": "system", "content": "Be brief."}, {"role": "user", "content": content}))


def test_messages_are_templated_once_with_one_start_token_and_the_assistants_header() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer("x")["input_ids"][0] == 1  # the tokenizer itself would add a second start token
    (ids,) = encode_prompts(tokenizer, [chat("1+1?")], max_tokens=200)
    assert ids.dtype == np.int32
    expected = "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == expected
    assert list(ids).count(1) == 1
    assert list(ids).count(2) == 3


def test_text_is_encoded_verbatim() -> None:
    tokenizer = make_tokenizer()
    plain, templated = encode_prompts(tokenizer, [record("1+1="), record("<|im_start|>user\nhi", "p2")], max_tokens=20)
    first_letter = len(SPECIAL) + 1
    assert plain.tolist() == [first_letter + ord(character) - 32 for character in "1+1="]
    assert templated.tolist()[0] == 2
    assert tokenizer.decode(templated) == "<|im_start|>user\nhi"


@pytest.mark.parametrize("marker", ["<|im_start|>", "[INST]", "<|start_header_id|>", "<pad>", "<s>"])
def test_messages_with_an_applied_template_are_refused(marker: str) -> None:
    with pytest.raises(DataError, match=r"'p1'.*applied twice"):
        encode_prompts(make_tokenizer(), [chat(f"{marker}user\n1+1?")], max_tokens=200)


def test_templated_prompts_of_the_real_set_are_refused_and_its_quizzes_are_accepted(
    real_rows: list[dict[str, Any]], knights_knaves_files: list[Path]
) -> None:
    from rlad.config import PromptFile

    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match="applied twice"):
        encode_prompts(tokenizer, [record(tuple(real_rows[0]["prompt"]))], max_tokens=5000)
    records = load_prompts(PromptFile(path=str(knights_knaves_files[0])))
    encoded = encode_prompts(tokenizer, records, max_tokens=5000)
    for ids, row in zip(encoded, real_rows, strict=False):
        baked = row["prompt"][0]["content"].replace("\n<|im_end|>", "<|im_end|>").removesuffix("<think>")
        assert tokenizer.decode(ids) == "<s>" + baked


def test_messages_require_a_chat_template() -> None:
    with pytest.raises(DataError, match="'p1' consists of chat messages, but the tokenizer has no chat template"):
        encode_prompts(make_tokenizer(template=None), [chat("1+1?")], max_tokens=200)


def test_error_of_the_chat_template_names_the_prompt() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    with pytest.raises(
        DataError, match="'p1': the tokenizer's chat template rejects the messages: no system role here"
    ):
        encode_prompts(make_tokenizer(template=template), [chat("1+1?")], max_tokens=200)


def test_prompt_at_the_limit_is_accepted_and_a_longer_one_refused_by_name() -> None:
    tokenizer = make_tokenizer()
    assert len(encode_prompts(tokenizer, [record("12345")], max_tokens=5)[0]) == 5
    with pytest.raises(DataError, match="'long' has 6 tokens, expected 1 to 5"):
        encode_prompts(tokenizer, [record("12345"), record("123456", "long")], max_tokens=5)


def test_unknown_symbols_are_refused() -> None:
    with pytest.raises(DataError, match="'p1' has symbols that the tokenizer does not know"):
        encode_prompts(make_tokenizer(letters=list("AB")), [record("A:b;?")], max_tokens=200)


def test_fingerprint_ignores_paths_templates_and_end_tokens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "student")
    shutil.copytree(tmp_path / "student", tmp_path / "renamed" / "teacher")
    fingerprint = tokenizer_fingerprint(tokenizer)
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0
    assert tokenizer_fingerprint(tmp_path / "student") == fingerprint
    assert tokenizer_fingerprint(str(tmp_path / "renamed" / "teacher")) == fingerprint
    assert tokenizer_fingerprint(make_tokenizer(eos="<pad>", template=None)) == fingerprint


def test_fingerprint_changes_when_two_ids_are_swapped_or_one_is_added() -> None:
    swapped = [LETTERS[1], LETTERS[0], *LETTERS[2:]]
    more = make_tokenizer()
    more.add_tokens(["<think>"])
    fingerprints = {
        tokenizer_fingerprint(made)
        for made in (make_tokenizer(), make_tokenizer(letters=swapped), make_tokenizer(letters=[*LETTERS, "é"]), more)
    }
    assert len(fingerprints) == 4


def test_fingerprint_covers_merges() -> None:
    def byte_pairs(merges: list[tuple[str, str]]) -> Any:
        vocabulary = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)))

    one, other = byte_pairs([("a", "b"), ("b", "c"), ("ab", "c")]), byte_pairs([("b", "c"), ("a", "b"), ("a", "bc")])
    assert one("abc")["input_ids"] == other("abc")["input_ids"] == [5]
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)


def test_fingerprint_of_a_saved_tiny_model_equals_that_of_its_copy(make_model: Any) -> None:
    assert tokenizer_fingerprint(make_model(seed=0)) == tokenizer_fingerprint(
        AutoTokenizer.from_pretrained(make_model(seed=1))
    )


def test_fingerprint_of_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer can be loaded from"):
        tokenizer_fingerprint(tmp_path / "nothing")


def test_template_fingerprint_depends_only_on_the_template() -> None:
    assert template_fingerprint(make_tokenizer()) == template_fingerprint(make_tokenizer(letters=list("AB")))
    assert (
        len({template_fingerprint(make_tokenizer(template=template)) for template in (CHATML, CHATML + " ", None)}) == 3
    )
