"""`rlad pretrain` with the smoke recipe: models and output."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.pretrain import pretrain
from rlad.starters import ROLES, Role, StarterRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    cache: Path
    directories: dict[Role, Path]
    printed: str


def _console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    cache, console = tmp_path_factory.mktemp("cache"), _console()
    directories = pretrain("kk-smoke", cache_dir=cache, force=False, console=console)
    return Made(cache=cache, directories=directories, printed=_printed(console))


def test_models_load_with_transformers_and_share_a_tokenizer(made: Made) -> None:
    vocabularies = []
    for directory in made.directories.values():
        model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
        vocabularies.append(tokenizer.get_vocab())
        assert (model.config.model_type, model.config.head_dim, model.dtype) == ("qwen3", 32, torch.float32)
        assert model.config.vocab_size == len(tokenizer)
        assert (model.config.eos_token_id, model.config.pad_token_id) == (
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        assert (model.generation_config.eos_token_id, model.generation_config.bos_token_id) == (
            tokenizer.eos_token_id,
            None,
        )
    assert vocabularies[0] == vocabularies[1]


def test_smoke_models_solve_some_puzzles_but_not_all(made: Made) -> None:
    for directory in made.directories.values():
        accuracy = StarterRecord.read(directory).accuracies["T=1"].overall
        assert 0.1 < accuracy.mean < 0.95
        assert accuracy.truncated < 0.2


def test_progress_is_printed_as_lines_without_a_terminal(made: Made) -> None:
    lines = made.printed.splitlines()
    for role in ROLES:
        training = [line for line in lines if line.startswith(f"training kk-smoke/{role}")]
        assert 3 <= len(training) <= 12
        assert "loss" in training[-1]
        assert "tok/s" in training[-1]
        assert f"starter:kk-smoke/{role} = {made.directories[role]}" in made.printed
    assert "pass@8" in made.printed


def test_second_call_uses_the_cache_and_prints_the_same_table(made: Made) -> None:
    before = {
        role: (directory / "model.safetensors").stat().st_mtime_ns for role, directory in made.directories.items()
    }
    console = _console()
    assert pretrain("kk-smoke", cache_dir=made.cache, force=False, console=console) == made.directories
    assert {
        role: (directory / "model.safetensors").stat().st_mtime_ns for role, directory in made.directories.items()
    } == before
    again = _printed(console)
    assert again.count("(cached)") == len(ROLES)
    assert "training kk-smoke" not in again
    table_rows = [line.replace("(cached)", "").split() for line in again.splitlines() if "│" in line]
    assert table_rows == [line.split() for line in made.printed.splitlines() if "│" in line]
