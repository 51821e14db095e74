"""Checks of a model's tokenizer and chat template that show which responses would be impossible or misread.

Each check returns findings; none raises for a faulty model. `rlad plan` and the preflight of a run report them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlad.data.records import PromptRecord

Level = Literal["ok", "warning", "error"]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Tags that verifiers look for in the text of a response."""

_CONTENT = "contentofthemessage"
# Markers of turns in common chat templates.
_MARKER = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<\|begin_of_text\|>|<start_of_turn>|\[INST\]|<\|user\|>|<｜User｜>"
)
_DATE = re.compile(r"strftime_now\s*\(|\bnow\(\)")
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFinding:
    """Result of one check.

    Attributes:
        level: `ok`, `warning` or `error`. With an error no response can earn a reward, or prompts cannot be encoded.
        text: The finding.
        remedy: What to do; empty for `ok`.
    """

    level: Level
    text: str
    remedy: str = ""

    @property
    def message(self) -> str:
        """The finding with its remedy."""
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


def check_tokenizer(
    directory: Path,
    tokenizer: Any,
    records: Sequence[PromptRecord],
    *,
    rows: int | None,
    sampled_rows: int | None = None,
    teacher_rows: Mapping[str, int] | None = None,
    required_tags: Collection[str] = (),
    kept_tags: Collection[str] = (),
    stop_ids: Collection[int] = (),
) -> list[TokenizerFinding]:
    """Return the findings about a student's tokenizer and chat template.

    Args:
        directory: Model directory of the student.
        tokenizer: Its loaded tokenizer.
        records: Prompts of the run; empty if they are not known, which leaves out the checks that read them.
        rows: Entries of the student's output layer; None if unknown.
        sampled_rows: Number of ids that sampling can choose, if it is less than `rows`.
        teacher_rows: Entries of each teacher's output layer, by pool.
        required_tags: Tags without which the run's verifiers read no answer.
        kept_tags: Tags that decoding keeps for the verifiers, although they are special tokens.
        stop_ids: Tokens at which sampling stops in addition to the model's end-of-sequence tokens.
    """
    has_messages = not records or any(not isinstance(record.prompt, str) for record in records)
    findings = [
        *_check_fast(directory),
        *_check_tags(directory, required_tags, kept_tags),
        *_check_rows(tokenizer, records, rows),
        *_check_teacher_rows(tokenizer, rows if sampled_rows is None else sampled_rows, teacher_rows or {}),
        *(_check_template(directory, tokenizer, stop_ids) if has_messages and tokenizer.chat_template else ()),
        *_check_texts(tokenizer, records),
    ]
    return findings or [TokenizerFinding(level="ok", text="tokenizer and chat template: no habit that loses responses")]


def _check_fast(directory: Path) -> Iterator[TokenizerFinding]:
    if not (directory / "tokenizer.json").is_file():
        yield TokenizerFinding(
            level="error",
            text=f"{directory} has no tokenizer.json (no fast tokenizer), so responses cannot be decoded for the "
            "verifiers",
            remedy="save it there with `AutoTokenizer.from_pretrained(DIR, use_fast=True).save_pretrained(DIR)`",
        )


def _check_tags(
    directory: Path, required_tags: Collection[str], kept_tags: Collection[str]
) -> Iterator[TokenizerFinding]:
    added = _json(directory / "tokenizer.json").get("added_tokens", [])
    special = [token["content"] for token in added if token.get("special")]
    dropped = [token for token in special if token.strip() in TAGS and token not in kept_tags]
    if not dropped:
        return
    names = ", ".join(dropped)
    lost = [tag for tag in dropped if tag.strip() in required_tags]
    consequence = (
        f"no verifier sees {', '.join(lost)}, and every response is unparseable"
        if lost
        else "verifiers see the thinking as a part of the answer"
        if any("think" in tag for tag in dropped)
        else "verifiers do not see them"
    )
    yield TokenizerFinding(
        level="error" if lost else "warning",
        text=f"decoding drops {names}, which the tokenizer marks as special tokens: {consequence}",
        remedy=f'set `"special": false` for {names} in tokenizer.json and tokenizer_config.json',
    )


def _check_rows(tokenizer: Any, records: Sequence[PromptRecord], rows: int | None) -> Iterator[TokenizerFinding]:
    beyond = {} if rows is None else {token: at for token, at in tokenizer.get_added_vocab().items() if at >= rows}
    if not beyond:
        return
    names = ", ".join(sorted(beyond)[:_NAMED]) + (f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else "")
    used = next((record for record in records if any(token in _text_of(record) for token in beyond)), None)
    ends = [token for token in (tokenizer.eos_token, tokenizer.bos_token) if token in beyond]
    text = f"the tokens {names} have ids from {min(beyond.values())}, but the model has {rows} rows, so it"
    if used is not None:
        yield TokenizerFinding(
            level="error",
            text=f"{text} cannot read prompt {used.id}, which contains one",
            remedy="resize the model with `model.resize_token_embeddings(len(tokenizer))`, or remove the tokens",
        )
    else:
        yield TokenizerFinding(
            level="error" if ends else "warning",
            text=f"{text} can never write them" + (f"; {ends[0]} is the end or the start of a text" if ends else ""),
            remedy="resize the model with `model.resize_token_embeddings(len(tokenizer))`, or remove the tokens",
        )


def _check_teacher_rows(
    tokenizer: Any, rows: int | None, teacher_rows: Mapping[str, int]
) -> Iterator[TokenizerFinding]:
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    for pool, known in teacher_rows.items():
        if rows is None or known >= rows:
            continue
        if tokens > known:
            yield TokenizerFinding(
                level="error",
                text=f"the student's tokens have ids up to {tokens - 1}, {pool} has only {known} rows, so it cannot "
                "score all responses",
                remedy="use a teacher with the student's vocabulary",
            )
        else:
            yield TokenizerFinding(
                level="warning",
                text=f"the student has {rows} rows, {pool} {known}: the ids from {known} are padding without a token, "
                f"and {pool} cannot score a response that contains one",
                remedy="nothing to do if sampling masks padded ids; else cut the student's output layer to its tokens",
            )


def _check_template(directory: Path, tokenizer: Any, stop_ids: Collection[int]) -> Iterator[TokenizerFinding]:
    template = json.dumps(tokenizer.chat_template)
    if _DATE.search(template):
        yield TokenizerFinding(
            level="warning",
            text="the chat template writes the present date into prompts, so they differ from day to day, and a "
            "resumed run trains on other prompts",
            remedy="replace `strftime_now(...)` in the template by a fixed date",
        )
    question = [{"role": "user", "content": "question"}]
    without, opened = _rendered(tokenizer, question, False), _rendered(tokenizer, question, True)
    answered = _rendered(tokenizer, [*question, {"role": "assistant", "content": _CONTENT}], False)
    if without is not None and without == opened and not _opens_answer(without, answered):
        yield TokenizerFinding(
            level="warning",
            text="the chat template ignores add_generation_prompt, so a prompt does not open the assistant's turn and "
            "the model may continue the user's text",
            remedy="add `{% if add_generation_prompt %}...{% endif %}` with the assistant's header to the template",
        )
    end = None if answered is None else _end_of_turn(tokenizer, answered)
    stops = {*_end_ids(directory, tokenizer), *stop_ids}
    if end is not None and end not in stops:
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(each)!r} ({each})" for each in sorted(stops)) or "none"
        yield TokenizerFinding(
            level="warning",
            text=f"the chat template ends a turn with {tokenizer.convert_ids_to_tokens(end)!r} ({end}), which is no "
            f"end-of-sequence token of the model ({names}): a response continues after its end, up to the token limit",
            remedy=f"add {end} to `eos_token_id` in generation_config.json",
        )


def _check_texts(tokenizer: Any, records: Sequence[PromptRecord]) -> Iterator[TokenizerFinding]:
    texts = [record for record in records if isinstance(record.prompt, str)]
    if not texts:
        return
    first, *others = tokenizer("x")["input_ids"]
    token = tokenizer.added_tokens_decoder.get(first)
    is_added = bool(others) and token is not None and token.special
    bos = tokenizer.convert_ids_to_tokens(first) if is_added else tokenizer.bos_token
    lacking = [record for record in texts if is_added and not _text_of(record).startswith(bos)]
    if lacking:
        yield TokenizerFinding(
            level="warning",
            text=f"{len(lacking)} text prompts, for example {lacking[0].id}, do not begin with {bos!r}, which the "
            "tokenizer adds to texts; prompts are encoded as they stand, so the model sees an unusual beginning",
            remedy=f"begin the prompts with {bos!r}, or provide them as messages (`chat: true`)",
        )
    known = tokenizer.get_vocab()
    foreign = [
        (record, match[0])
        for record in texts
        if (match := _MARKER.search(_text_of(record))) and match[0] not in known and match[0] != "[INST]"
    ]
    if foreign:
        yield TokenizerFinding(
            level="warning",
            text=f"{len(foreign)} text prompts, for example {foreign[0][0].id}, contain {foreign[0][1]!r}, which is no "
            "token of this tokenizer: the chat template of another model was applied to them",
            remedy="provide the messages instead, so that this model's template is applied",
        )
    twice = [record for record in texts if bos and _text_of(record).startswith(bos + bos)]
    if twice:
        yield TokenizerFinding(
            level="warning",
            text=f"{len(twice)} text prompts, for example {twice[0].id}, begin with {bos!r} twice: the template was "
            "applied twice",
            remedy="provide the messages, or remove the second one",
        )


def _opens_answer(rendered: str, answered: str | None) -> bool:
    """Return True if a template always ends with the assistant's header, as some completion templates do."""
    return answered is not None and answered.startswith(rendered) and answered[len(rendered) :].startswith(_CONTENT)


def _end_of_turn(tokenizer: Any, answered: str) -> int | None:
    """Return the special token that follows an assistant's message; None if there is none."""
    after = answered.rpartition(_CONTENT)[2].lstrip()
    at_start = [
        (len(token.content), token_id)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and after.startswith(token.content)
    ]
    return max(at_start)[1] if at_start else None


def _end_ids(directory: Path, tokenizer: Any) -> set[int]:
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for name in ("generation_config.json", "config.json"):
        found = _json(directory / name).get("eos_token_id")
        if found is not None:
            return ids | ({int(found)} if isinstance(found, int) else {int(each) for each in found})
    return ids


def _rendered(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> str | None:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except (TemplateError, ValueError):
        return None  # encoding the prompts reports a template that cannot be applied
    return text


def _text_of(record: PromptRecord) -> str:
    if isinstance(record.prompt, str):
        return record.prompt
    return "\n".join(str(message["content"]) for message in record.prompt)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
