"""Teacher benchmark: both engines on the same groups, the gain from a shared prompt, and the cost of cached groups.

python -m benchmarks.teacher --json OUT
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import typer
from rich.console import Console

from benchmarks.measure import JsonPath, Pairs, Ratio, Result, measure_pairs, show
from benchmarks.workload import TINY as MODEL
from benchmarks.workload import long_tailed_lengths, scored_groups, write_model
from pipelines.run.progress import RunProgress
from rlad.config import TeacherConfig
from rlad.contracts import Array
from rlad.errors import EngineError

GROUPS, GROUP_SIZE, PROMPT_TOKENS, MEDIAN_TOKENS = 16, 8, 128, 64
_TOKEN_BUDGET = 8192
_TIMEOUT_S = 300.0

Engine = Literal["vllm", "transformers"]
Group = tuple[Array, Array, Array]
"""Prompt ids, response ids, response offsets."""


class EngineProcess:
    """Engine in a separate process, with the score cache of a teacher replica."""

    def __init__(self, engine: Engine, model_path: str) -> None:
        context = get_context("spawn")
        self._connection, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_end, engine, model_path))
        self._process.start()
        child_end.close()
        self._receive()

    def score(self, groups: Sequence[Group], *, remembers: bool = False) -> tuple[float, list[Array]]:
        """Score groups concurrently, one call each, and return the seconds and the log-probabilities.

        Args:
            groups: groups to score.
            remembers: whether to keep the engine's score cache; otherwise it is emptied first.
        """
        self._connection.send((list(groups), remembers))
        elapsed_s, scores = self._receive()
        return elapsed_s, scores

    def close(self) -> None:
        self._connection.send(None)
        self._process.join(30)
        self._process.kill()

    def _receive(self) -> Any:
        try:
            if self._connection.poll(_TIMEOUT_S):
                return self._connection.recv()
        except EOFError as error:
            raise EngineError("the process of a teacher engine died; its message is above") from error
        raise EngineError(f"a teacher engine did not answer within {_TIMEOUT_S:g} s")


def _serve(connection: Connection, engine: Engine, model_path: str) -> None:
    asyncio.run(_serve_engine(connection, engine, model_path))


async def _serve_engine(connection: Connection, engine: Engine, model_path: str) -> None:
    from actors.teacher.replica import _build_scorer
    from actors.teacher.score_cache import CachedScorer, ScoreCache

    config = TeacherConfig(path=model_path, dtype="float32", engine=engine, token_budget=_TOKEN_BUDGET)
    scorer = _build_scorer(config)
    cached = CachedScorer(scorer, teacher="benchmark", cache=ScoreCache(max_values=config.cache_tokens))
    connection.send("ready")
    groups: list[Group]
    while (request := await asyncio.to_thread(connection.recv)) is not None:
        groups, remembers = request
        if not remembers:
            cached = CachedScorer(scorer, teacher="benchmark", cache=ScoreCache(max_values=config.cache_tokens))
        started = time.perf_counter()
        scores = await asyncio.gather(*(cached.score(*group, 1.0) for group in groups))
        connection.send((time.perf_counter() - started, [group_scores.logprobs for group_scores in scores]))
    scorer.close()
    del scorer, cached  # vLLM can no longer clean up while the interpreter shuts down


def _seconds(engine: EngineProcess, groups: Sequence[Group], *, remembers: bool = False) -> float:
    return engine.score(groups, remembers=remembers)[0]


def make_groups() -> list[Group]:
    lengths = long_tailed_lengths(GROUPS * GROUP_SIZE, median=MEDIAN_TOKENS)
    scored = scored_groups(lengths, group_size=GROUP_SIZE, prompt_tokens=PROMPT_TOKENS, vocabulary=MODEL.vocabulary)
    return [
        (entry.group.prompt_ids, entry.group.response_ids, entry.group.response_offsets) for entry in scored.values()
    ]


def one_by_one(groups: Sequence[Group]) -> list[Group]:
    """Return the same responses as groups of one, as for a teacher that does not share prompts."""
    return [
        (prompt, response, np.array([0, len(response)], np.int64))
        for prompt, responses, offsets in groups
        for response in np.split(responses, offsets[1:-1])
    ]


def require_equal(first: Sequence[Array], second: Sequence[Array]) -> float:
    """Return the largest difference between the log-probabilities of two engines, in nats.

    Raises:
        EngineError: the difference is too large for one model.
    """
    gap = float(np.abs(np.concatenate(first) - np.concatenate(second)).max())
    if gap > 1e-3:
        raise EngineError(f"expected equal log-probabilities of both engines; got differences of up to {gap} nats")
    return gap


def main(json: JsonPath = None, pairs: Pairs = 5) -> None:
    """Measure the teacher's engines. Takes about a minute and a half."""
    console = Console()
    groups = make_groups()
    tokens = sum(len(responses) for _, responses, _ in groups)
    with (
        tempfile.TemporaryDirectory(prefix="rlad-benchmark-") as directory,
        RunProgress(console, total_steps=1) as progress,
    ):
        model = str(write_model(Path(directory) / "teacher", MODEL))
        with progress.phase("starting both engines"):
            engines: dict[Engine, EngineProcess] = {
                "vllm": EngineProcess("vllm", model),
                "transformers": EngineProcess("transformers", model),
            }
        try:
            vllm, transformers = (partial(_seconds, engine, groups) for engine in engines.values())
            gap = require_equal(engines["vllm"].score(groups)[1], engines["transformers"].score(groups)[1])
            with progress.phase("vllm against transformers", total=pairs) as phase:
                between = measure_pairs(vllm, transformers, pairs=pairs, on_pair=phase.advance)
            with progress.phase("one prompt per response against one per group", total=pairs) as phase:
                alone = partial(_seconds, engines["transformers"], one_by_one(groups))
                sharing = measure_pairs(alone, transformers, pairs=pairs, on_pair=phase.advance)
            with progress.phase("cached groups", total=pairs) as phase:
                again = partial(_seconds, engines["transformers"], groups, remembers=True)
                remembered = measure_pairs(again, transformers, pairs=pairs, on_pair=phase.advance)
        finally:
            for engine in engines.values():
                engine.close()
    ratios = [
        Ratio(
            name="vllm_over_transformers",
            value=between.ratio,
            means="time to score the same groups; above 1 transformers is faster",
        ),
        Ratio(
            name="unshared_over_shared_prompt",
            value=sharing.ratio,
            target=1,
            side="at least",
            means="transformers: one prompt per response over one per group",
        ),
        Ratio(
            name="remembered_over_scored",
            value=remembered.ratio,
            means="time of cached groups over scoring them",
        ),
    ]
    figures = {
        "vllm_tokens_per_s": tokens / between.first_median_s,
        "transformers_tokens_per_s": tokens / between.second_median_s,
        "remembered_tokens_per_s": tokens / remembered.first_median_s,
        "largest_gap_nats": gap,
        **between.figures("vllm", "transformers"),
        **sharing.figures("unshared", "shared"),
    }
    settings = {
        "model_parameters": MODEL.num_parameters,
        "groups": GROUPS,
        "group_size": GROUP_SIZE,
        "prompt_tokens": PROMPT_TOKENS,
        "response_tokens": tokens,
        "token_budget": _TOKEN_BUDGET,
        "threads": 1,
    }
    show(Result(benchmark="teacher", ratios=ratios, figures=figures, settings=settings), json, console)


if __name__ == "__main__":
    typer.run(main)
