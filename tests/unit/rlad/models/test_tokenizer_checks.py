"""Habits of tokenizers and chat templates that make responses impossible are found, and only where they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from rlad.data.chat import load_tokenizer
from rlad.data.records import PromptRecord
from rlad.models.tokenizer_checks import TokenizerFinding, check_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]
ROWS = len(SPECIAL) + 1 + len(LETTERS)
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHAT = PromptRecord(id="p1", prompt=({"role": "user", "content": "1+1?"},), task="t", answer="2")
TEXT = PromptRecord(id="p2", prompt="1+1=", task="t", answer="2")


def make_model(
    folder: Path,
    *,
    template: str = CHATML,
    eos: str = "<|im_end|>",
    generation_eos: Any = 2,
    extra: dict[str, bool] | None = None,
    adds_bos: bool = False,
) -> Path:
    """Write the tokenizer of a small ChatML model. `extra` are added tokens, True for special ones."""
    folder.mkdir(exist_ok=True)
    vocabulary = [*SPECIAL, "?unknown?", *LETTERS]
    backend = Tokenizer(models.WordLevel({token: at for at, token in enumerate(vocabulary)}, unk_token="?unknown?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(SPECIAL)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    backend.add_tokens([token for token, special in (extra or {}).items() if not special])
    backend.add_special_tokens([token for token, special in (extra or {}).items() if special])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "bos_token": "<s>"}
    settings |= {"unk_token": "?unknown?", "pad_token": "<|endoftext|>"}
    for name, value in {
        "tokenizer_config.json": settings,
        "config.json": {"model_type": "llama", "vocab_size": ROWS, "max_position_embeddings": 2048},
        "generation_config.json": {"eos_token_id": generation_eos},
    }.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def findings(folder: Path, *records: PromptRecord, **settings: Any) -> list[TokenizerFinding]:
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    return check_tokenizer(folder, load_tokenizer(folder), records or [CHAT], **{"rows": rows, **settings})


def levels(found: list[TokenizerFinding]) -> list[str]:
    return [finding.level for finding in found]


def test_usual_model_has_no_finding_and_says_so(tmp_path: Path) -> None:
    [found] = findings(make_model(tmp_path), CHAT, TEXT)
    assert found.level == "ok"


@pytest.mark.parametrize(
    ("special", "required", "level"),
    [(True, ("<answer>",), "error"), (True, (), "warning"), (False, ("<answer>",), "ok")],
)
def test_tags_that_decoding_drops_are_errors_where_a_verifier_needs_them(
    tmp_path: Path, special: bool, required: tuple[str, ...], level: str
) -> None:
    folder = make_model(tmp_path, extra={"<answer>": special, "</answer>": special})
    found = findings(folder, rows=ROWS + 2, required_tags=required)
    assert levels(found) == [level]
    decoded = Tokenizer.from_file(str(folder / "tokenizer.json")).decode([ROWS], skip_special_tokens=True)
    assert (decoded == "") is special  # what the verifier worker does
    if special:
        assert "<answer>, </answer>" in found[0].text
        assert '"special": false' in found[0].remedy


def test_dropped_thinking_tags_are_a_warning(tmp_path: Path) -> None:
    [found] = findings(make_model(tmp_path, extra={"<think>": True, "</think>": True}), rows=ROWS + 2)
    assert (found.level, "verifiers see the thinking" in found.text) == ("warning", True)


def test_end_of_turn_that_is_no_end_of_sequence_is_found_until_sampling_stops_there(tmp_path: Path) -> None:
    folder = make_model(tmp_path, eos="<|endoftext|>", generation_eos=0)
    [found] = findings(folder)
    assert found.level == "warning"
    assert "'<|im_end|>' (2)" in found.text
    assert "add 2 to `eos_token_id`" in found.remedy
    assert levels(findings(folder, stop_ids=(2,))) == ["ok"]
    assert levels(findings(folder, TEXT)) == ["ok"]  # no template, no turn
    assert levels(findings(make_model(tmp_path / "list", eos="<|endoftext|>", generation_eos=[0, 2]))) == ["ok"]


def test_added_tokens_above_the_rows_are_errors_where_a_prompt_has_one(tmp_path: Path) -> None:
    folder = make_model(tmp_path, extra={"<step>": False, "<tool>": False})
    assert levels(findings(folder)) == ["warning"]
    prompt = PromptRecord(id="p9", prompt="Use <step>.", task="t", answer="2")
    [found] = findings(folder, TEXT, prompt)
    assert (found.level, "prompt p9" in found.text) == ("error", True)
    assert levels(findings(folder, rows=ROWS + 2)) == ["ok"]
    assert levels(findings(folder, rows=ROWS + 1)) == ["warning"]


def test_teacher_with_fewer_rows_cannot_score_padding_and_with_fewer_than_the_tokens_nothing(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    for teacher, level in ((ROWS + 8, "ok"), (ROWS + 16, "ok"), (ROWS, "warning"), (ROWS - 1, "error")):
        assert levels(findings(folder, rows=ROWS + 8, teacher_rows={"teacher": teacher})) == [level]
    masked = findings(folder, rows=ROWS + 8, sampled_rows=ROWS, teacher_rows={"teacher": ROWS})
    assert levels(masked) == ["ok"]


def test_model_without_a_fast_tokenizer_is_an_error(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    tokenizer = load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    [found] = check_tokenizer(folder, tokenizer, [CHAT], rows=ROWS)
    assert (found.level, "no tokenizer.json" in found.text) == ("error", True)


def test_text_prompts_without_the_start_token_that_the_tokenizer_adds_are_found(tmp_path: Path) -> None:
    folder = make_model(tmp_path, adds_bos=True)
    [found] = findings(folder, TEXT)
    assert (found.level, "'<s>'" in found.text) == ("warning", True)
    with_bos = PromptRecord(id="p3", prompt="<s>1+1=", task="t", answer="2")
    assert levels(findings(folder, with_bos)) == levels(findings(folder, CHAT)) == ["ok"]
    twice = PromptRecord(id="p4", prompt="<s><s>1+1=", task="t", answer="2")
    assert "twice" in findings(folder, twice)[0].text


def test_text_that_another_models_template_rendered_is_found(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    foreign = PromptRecord(id="p5", prompt="<start_of_turn>user\n1+1?", task="t", answer="2")
    own = PromptRecord(id="p6", prompt="<|im_start|>user\n1+1?<|im_end|>\n", task="t", answer="2")
    [found] = findings(folder, foreign, own)
    assert "1 text prompts, for example p5" in found.text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (TURNS, "ignores add_generation_prompt"),
        ("{{ strftime_now('%d %b %Y') }}" + CHATML, "present date"),
        ("{{ bad }}{{ raise_exception('no') }}", None),  # encoding the prompts reports it
        ("{% for m in messages %}{{ m.content }}\n### Answer\n{% endfor %}", None),  # opens the answer in any case
        (CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"), None),
    ],
)
def test_faults_of_templates(tmp_path: Path, template: str, text: str | None) -> None:
    [found] = findings(make_model(tmp_path, template=template))
    assert found.level == ("ok" if text is None else "warning")
    if text is not None:
        assert text in found.text


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    program = Path(__file__).resolve().parents[5] / "shared" / "data" / "field" / "tokenizers" / "variants.py"
    if not program.exists():
        pytest.skip(f"no tokenizer variants at {program}")
    folder = tmp_path_factory.mktemp("variants")
    base = make_model(folder / "base")
    subprocess.run([sys.executable, str(program), str(base), str(folder / "out")], check=True, timeout=60)
    return lambda name: folder / "out" / name


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("same", CHAT, ["ok"]),
        ("beyond_normal", CHAT, ["warning"]),
        ("think_normal", CHAT, ["ok"]),
        ("superset", CHAT, ["warning"]),
        ("llama_bos", CHAT, ["ok"]),
        ("llama_bos", TEXT, ["warning"]),
        ("gemma", CHAT, ["ok"]),
        ("no_template", CHAT, ["ok"]),  # encoding the prompts refuses messages without a template
        ("qwen3", CHAT, ["ok"]),
        ("prefill", CHAT, ["ok"]),
        ("no_genprompt", CHAT, ["warning"]),
        ("gen_eos_list", CHAT, ["ok"]),
        ("truncating", CHAT, ["ok"]),
        ("named_templates", CHAT, ["ok"]),
        ("bad_jinja", CHAT, ["ok"]),  # encoding the prompts reports it
        ("short_context", CHAT, ["ok"]),  # the plan compares lengths
    ],
)
def test_variants_from_the_field(
    variants: Callable[[str], Path], name: str, record: PromptRecord, expected: list[str]
) -> None:
    assert levels(findings(variants(name), record)) == expected
