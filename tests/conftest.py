"""Fixtures shared by all tests: tiny models and real data.

The models have the Qwen3 architecture, random weights and a head size of 32, the smallest that vLLM's CPU attention
accepts.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray starts its workers at nice 15. Beside a busy process they would get a thirtieth of a core, and miss deadlines.
os.environ.setdefault("RAY_worker_niceness", "0")

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
CLUSTER_TESTS = TESTS / "cluster"
SHARED = Path(__file__).resolve().parents[2] / "shared"
MakeModel = Callable[..., Path]

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests, and restrict errors from warnings to the project's modules in tests with engines or Ray.

    Ray and the libraries of the engines warn about open sockets and each other's interfaces, at times that depend on
    load.
    """
    _order(items)
    _refuse_tests_that_no_command_runs(items)
    only_ours = pytest.mark.filterwarnings("default", "error:::(rlad|actors|pipelines|benchmarks|tests)\\b")
    for item in items:
        if item.get_closest_marker("engine") or CLUSTER_TESTS in item.path.parents:
            item.add_marker(only_ours)


def _order(items: list[pytest.Item]) -> None:
    """Begin with long tests, and spread the files that start a cluster evenly among the others.

    A long test at the end would keep one process waiting for the other. Tests with a cluster wait much of their time,
    which the tests of another process then use.
    """
    files = list(dict.fromkeys(item.path for item in items))
    with_cluster = [file for file in files if CLUSTER_TESTS in file.parents]
    others = [file for file in files if CLUSTER_TESTS not in file.parents]
    place = {file: index / len(group) for group in (with_cluster, others) for index, file in enumerate(group)}
    items.sort(key=lambda item: (item.get_closest_marker("long") is None, place[item.path]))


def _refuse_tests_that_no_command_runs(items: list[pytest.Item]) -> None:
    """Refuse tests with engines outside of the folders that `make test` collects for them, and others in theirs."""
    for item in items:
        is_engine, is_chaos, is_slow = (
            item.get_closest_marker(name) is not None for name in ("engine", "chaos", "slow")
        )
        folder = item.path.relative_to(TESTS).parts[0]
        if is_engine and not is_chaos and folder not in ("docs", "end_to_end"):
            raise pytest.UsageError(f"{item.nodeid} starts an engine: it belongs into tests/end_to_end")
        if is_slow and folder != "end_to_end":
            raise pytest.UsageError(f"{item.nodeid} has the mark `slow`: it belongs into tests/end_to_end")
        if folder == "end_to_end" and not is_engine:
            raise pytest.UsageError(f"{item.nodeid} needs the mark `engine`, as every test of its folder")


class _FailuresAtOnce:
    """Plugin that prints each failure when it happens, since a run that is killed prints no summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\n{report.nodeid} failed in {report.when}:\n{report.longreprtext[-4000:]}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_FailuresAtOnce(terminal))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of public data sets, next to the repository; skip the test if it does not exist."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder}")
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedResponse:
    """Response to a problem, written like a person's.

    Attributes:
        text: response text.
        answer: expected answer of the problem.
        is_correct: whether the response gives that answer.
    """

    text: str
    answer: str
    is_correct: bool


@pytest.fixture(scope="session")
def aime_responses(shared_data: Path) -> list[MarkedResponse]:
    """Return correct responses to every AIME problem in the set, and 500 wrong ones.

    Wrong answers are near misses, errors in a digit, the sign or the decimal point, and answers of other problems.
    """
    answers = [json.loads(line)["answer"] for line in (shared_data / "aime_2021_2024.jsonl").read_text().splitlines()]
    prose = itertools.cycle(
        [
            "Adding both cases gives $\\boxed{{{0}}}$ as required.",
            "So $m+n = \\boxed{{{0}}}$.",
            "Hence\n\\[\\boxed{{{0}}}\\]",
            "**Answer:** \\boxed{{{0}}}",
        ]
    )
    wrong: list[tuple[str, str]] = []
    for place, answer in enumerate(answers):
        number = int(answer.split(" or ")[0])
        others = [
            number + 1,
            number - 1,
            -number,
            f"{number}0",
            f"{number}.5",
            f"\\frac{{{number}}}{{2}}",
            answers[place - 2],
            f"{number},{number + 7}",
        ]
        wrong += [(str(other), answer) for other in others if str(other).lstrip("0") not in answer]
    right: list[tuple[str, str]] = [
        (accepted, answer)
        for answer in answers
        for accepted in answer.removesuffix(" (both were accepted)").split(" or ")
    ]
    triples = [(text, answer, True) for text, answer in right] + [(text, answer, False) for text, answer in wrong[:500]]
    return [
        MarkedResponse(text=next(prose).format(text), answer=answer, is_correct=is_correct)
        for text, answer, is_correct in triples
    ]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Return a builder of tiny random Qwen3 checkpoints with a character tokenizer, cached by its arguments."""
    built: dict[tuple[bool, int, int], Path] = {}

    def make(*, tied: bool = True, seed: int = 0, layers: int = 2) -> Path:
        key = (tied, seed, layers)
        if key not in built:
            built[key] = _write_model(tmp_path_factory.mktemp("model"), tied=tied, seed=seed, layers=layers)
        return built[key]

    return make


def _write_model(directory: Path, *, tied: bool, seed: int, layers: int) -> Path:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = ["<pad>", "$", *"ABCDEFGHabcdefgh:;?=&|>~TFx", "!"]
    tokenizer = Tokenizer(
        models.WordLevel({character: index for index, character in enumerate(alphabet)}, unk_token="!")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="$", unk_token="!"
    ).save_pretrained(directory)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(alphabet),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def gemma3_model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random Gemma 3 checkpoint with the tokenizer of `make_model` and padding in its output layer.

    Five of its six layers attend to the latest 16 tokens only.
    """
    from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

    directory = tmp_path_factory.mktemp("gemma3")
    AutoTokenizer.from_pretrained(make_model()).save_pretrained(directory)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=16,
        max_position_embeddings=512,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.2,
    )
    Gemma3ForCausalLM(config).float().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_reward_model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Return a builder of tiny random Qwen3 sequence classifiers with the tokenizer of `make_model`."""

    def make(*, labels: int = 1) -> Path:
        from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

        directory, base = tmp_path_factory.mktemp("reward_model"), make_model()
        AutoTokenizer.from_pretrained(base).save_pretrained(directory)
        torch.manual_seed(5)
        Qwen3ForSequenceClassification(Qwen3Config.from_pretrained(base, num_labels=labels)).float().save_pretrained(
            directory
        )
        return directory

    return make
