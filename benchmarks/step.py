"""Step benchmark: whole training steps of rlad and TRL on the same model, prompts, lengths, reward and cores.

    python -m benchmarks.step --json OUT

rlad executes a complete run with all its processes: vLLM rollout worker, verifiers, broker, the learner in Ray Train,
and for RLAD a teacher on Ray Serve. TRL executes its GRPO trainer in one process. Steps alternate; one framework waits
while the other works. A step begins with prompts and ends with the weights that the next step samples with. The
response length is fixed per prompt, because both frameworks can be configured that way.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import typer
from ray.actor import ActorMethod
from rich.console import Console

from actors.messages import SampledGroup, SampleRequest, WeightsPublication
from actors.rollout.pool import RolloutPool
from benchmarks.measure import JsonPath, Paired, Pairs, Ratio, Result, show
from benchmarks.stand_ins.ended_worker import EndedWorker
from benchmarks.trl_step import TrlTrainer
from benchmarks.workload import FIRST_ID, TINY, long_tailed_lengths, write_model
from pipelines.distill import distill
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.config import RunConfig
from rlad.data.prompt_files import write_prompt_file
from rlad.data.records import PromptRecord

Threads = Annotated[int, typer.Option(min=1, help="Compute threads of each engine of rlad, and of TRL.")]

PROMPTS, GROUP_SIZE, PROMPT_TOKENS, MEAN_TOKENS = 16, 4, 16, 128
_MEDIAN_TOKENS = 84
_WARM_UPS = 1
KINDS = ("uniform", "long_tailed")


def lengths_by_kind() -> dict[str, list[int]]:
    """Return the response tokens of each prompt, by kind of step; the kinds have equal totals."""
    long_tailed = long_tailed_lengths(PROMPTS, median=_MEDIAN_TOKENS)
    long_tailed[long_tailed.index(max(long_tailed))] += PROMPTS * MEAN_TOKENS - sum(long_tailed)
    return {"uniform": [MEAN_TOKENS] * PROMPTS, "long_tailed": long_tailed}


class AlternatingSteps:
    """Alternation of rlad's steps with TRL's, with the response lengths of the step's kind.

    A step of rlad begins when the rollout workers have the weights of the previous step, and ends when they have the
    weights that it trained.
    """

    def __init__(self, trl: TrlTrainer, lengths: dict[str, list[int]]) -> None:
        self._trl = trl
        self._lengths = {
            kind: {f"p{number}": length for number, length in enumerate(of_prompts)}
            for kind, of_prompts in lengths.items()
        }
        self._steps = -1
        self._began_at = 0.0
        self._seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        self._calls: Counter[str] = Counter()
        self.calls_of_steps: Counter[str] = Counter()

    @property
    def measured(self) -> dict[str, Paired]:
        """Seconds of TRL's and rlad's steps by kind, without the warm-up."""
        pairs = {kind: seconds[_WARM_UPS:] for kind, seconds in self._seconds.items()}
        return {
            kind: Paired(first_s=tuple(trl for trl, _ in seconds), second_s=tuple(rlad for _, rlad in seconds))
            for kind, seconds in pairs.items()
        }

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Intercept the weight updates and requests of the rollout pool within the block.

        Its workers report every response as ended by the end-of-sequence token.
        """
        start, update_weights, sample = RolloutPool.__init__, RolloutPool.update_weights, RolloutPool.sample

        def start_ended(pool: RolloutPool, *arguments: Any, **settings: Any) -> None:
            start(pool, *arguments, **settings | {"worker": EndedWorker})

        async def update_and_wait(pool: RolloutPool, publication: WeightsPublication) -> None:
            await update_weights(pool, publication)
            await self._end_step()

        async def sample_length(pool: RolloutPool, request: SampleRequest, **settings: Any) -> SampledGroup:
            length = self._lengths[self._kind].get(request.prompt_id, request.max_response_tokens)
            return await sample(pool, replace(request, max_response_tokens=length), **settings)

        RolloutPool.__init__ = start_ended  # type: ignore[method-assign,assignment]
        RolloutPool.update_weights, RolloutPool.sample = update_and_wait, sample_length  # type: ignore[method-assign,assignment]
        try:
            with _counted_calls(self._calls):
                yield
        finally:
            RolloutPool.__init__ = start  # type: ignore[method-assign]
            RolloutPool.update_weights, RolloutPool.sample = update_weights, sample  # type: ignore[method-assign]

    @property
    def _kind(self) -> str:
        return KINDS[max(0, self._steps) % len(KINDS)]

    async def _end_step(self) -> None:
        rlad_s = time.perf_counter() - self._began_at
        if self._steps >= 0:  # the weights that a run starts with do not end a step
            trl_s = await asyncio.to_thread(self._trl.step, self._kind)
            self._seconds[self._kind].append((trl_s, rlad_s))
        self._steps += 1
        if self._steps == _WARM_UPS * len(KINDS):
            self._calls.clear()
        self.calls_of_steps = self._calls.copy()  # excludes the evaluation after the last step
        self._began_at = time.perf_counter()


@contextmanager
def _counted_calls(calls: Counter[str]) -> Iterator[None]:
    """Count the actor calls of this process, by method."""
    original = ActorMethod._remote

    def counting(method: Any, *arguments: Any, **settings: Any) -> Any:
        calls[method._method_name] += 1
        return original(method, *arguments, **settings)

    ActorMethod._remote = counting
    try:
        yield
    finally:
        ActorMethod._remote = original


def make_config(folder: Path, method: str, *, steps: int, threads: int) -> RunConfig:
    """Return the configuration of a run that uses all prompts in every step."""
    prompts = folder / "prompts.jsonl"
    files = {"train": prompts, "evaluation": folder / "evaluation.jsonl"}
    teacher = {
        "path": str(folder / "teacher"),
        "dtype": "float32",
        "engine": "transformers",
        "cpus_per_replica": 0.25,
        "threads": threads,
    }
    return RunConfig.model_validate(
        {
            "name": f"step-{method}",
            "student": {"path": str(folder / "student"), "dtype": "float32"},
            **({"teacher": teacher} if method == "trrd" else {}),
            "objective": {"name": method},
            "prompts": {"source": "file", "path": str(files["train"])},
            "verifiers": {"words": {"name": "python_function", "path": "benchmarks.step_reward:share_of_even_words"}},
            "verifier_pool": {"cpus_per_worker": 0.25},
            "rollout": {
                "group_size": GROUP_SIZE,
                "max_prompt_tokens": PROMPT_TOKENS,
                "max_response_tokens": max(map(max, lengths_by_kind().values())),
                "cpus_per_worker": 0.5,
                "threads": threads,
            },
            "learner": {
                "zero_stage": 0,
                "optimizer": {"lr": 1e-6},
                "micro_batch_tokens": 4096,
                "cpus_per_rank": 0.5,
                "threads": threads,
            },
            "training": {"steps": steps, "prompts_per_step": PROMPTS},
            "evaluation": {
                "prompts": {"source": "file", "path": str(files["evaluation"])},
                "every_steps": 0,
                "max_response_tokens": 1,
            },
            "checkpoints": {"every_steps": steps},
            "cluster": {"num_cpus": 2},
        }
    )


def write_inputs(folder: Path) -> list[str]:
    """Write models and prompts, with the same words for both frameworks, and return the prompts.

    rlad's responses end at their token budget, so its model has no end-of-sequence token.
    """
    write_model(folder / "student", TINY, ends=False)
    write_model(folder / "teacher", TINY, seed=1, ends=False)
    write_model(folder / "trl", TINY)
    prompts = [
        " ".join(f"w{FIRST_ID + (number + place) % (TINY.vocabulary - FIRST_ID)}" for place in range(PROMPT_TOKENS))
        for number in range(PROMPTS + 1)
    ]
    records = [
        PromptRecord(id=f"p{number}", prompt=prompt, task="words", answer="even", metadata={})
        for number, prompt in enumerate(prompts)
    ]
    write_prompt_file(records[:PROMPTS], folder / "prompts.jsonl")
    write_prompt_file(records[PROMPTS:], folder / "evaluation.jsonl")
    return prompts[:PROMPTS]


def run_rlad(
    folder: Path, method: str, trl: TrlTrainer, *, steps: int, threads: int, console: Console
) -> tuple[AlternatingSteps, RunDirectory]:
    """Execute one run of rlad, its steps alternating with TRL's."""
    alternating, run = AlternatingSteps(trl, lengths_by_kind()), RunDirectory(folder / method)
    with alternating.patched():
        distill(make_config(folder, method, steps=steps, threads=threads), run, resume=False, console=console)
    return alternating, run


def main(json: JsonPath = None, pairs: Pairs = 5, threads: Threads = 1, trl_threads: Threads = 1) -> None:
    """Measure whole steps of rlad, GRPO and RLAD, against TRL's GRPO trainer. Takes three minutes."""
    console = Console()
    os.environ["RAY_ADDRESS"] = "local"  # independent of any cluster on this machine
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's spelling. TRL's process has the same priority.
    steps = len(KINDS) * (_WARM_UPS + pairs)
    measured: dict[str, dict[str, Paired]] = {}
    metrics: dict[str, list[dict[str, float]]] = {}
    calls: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="rlad-benchmark-") as directory:
        folder = Path(directory)
        prompts = write_inputs(folder)
        by_first_token = {
            kind: {FIRST_ID + number: length for number, length in enumerate(lengths)}
            for kind, lengths in lengths_by_kind().items()
        }
        trl = TrlTrainer(str(folder / "trl"), prompts, by_first_token, group_size=GROUP_SIZE, threads=trl_threads)
        try:
            for method in ("grpo", "trrd"):
                alternating, run = run_rlad(folder, method, trl, steps=steps, threads=threads, console=console)
                measured[method], metrics[method] = (
                    alternating.measured,
                    read_json_lines(run.metrics)[_WARM_UPS * len(KINDS) :],
                )
                groups = PROMPTS * pairs * len(KINDS)
                calls[method] = {name: count / groups for name, count in sorted(alternating.calls_of_steps.items())}
        finally:
            trl.close()
    grpo, rlad = measured["grpo"], measured["trrd"]
    ratios = [
        Ratio(
            name="trl_over_ours_long_tailed",
            value=grpo["long_tailed"].ratio,
            target=1.5,
            side="at least",
            means="whole GRPO step, lengths long-tailed",
        ),
        Ratio(
            name="trl_over_ours_uniform",
            value=grpo["uniform"].ratio,
            target=1,
            side="at least",
            means="whole GRPO step, all responses of 128 tokens",
        ),
        Ratio(
            name="trl_over_rlad_long_tailed",
            value=rlad["long_tailed"].ratio,
            means="TRL's GRPO step over rlad's RLAD step, teacher included",
        ),
        Ratio(
            name="trl_over_rlad_uniform",
            value=rlad["uniform"].ratio,
            means="TRL's GRPO step over rlad's RLAD step, all responses of 128 tokens",
        ),
        Ratio(
            name="calls_per_group",
            value=calls["grpo"].get("sample", 0) + calls["grpo"].get("verify", 0),
            target=2,
            means="actor calls to rollout workers and verifiers",
        ),
    ]
    figures: dict[str, Any] = {}
    for method, by_kind in measured.items():
        for number, (kind, paired) in enumerate(by_kind.items()):
            figures |= {f"{method}_{kind}_{name}": value for name, value in paired.figures("trl", "ours").items()}
            of_kind = metrics[method][number :: len(KINDS)]
            figures[f"{method}_{kind}_parts"] = {
                name: round(sorted(step[name] for step in of_kind)[len(of_kind) // 2], 3)
                for name in ("time/generate_s", "time/score_s", "time/learn_s", "learner/train_s", "learner/publish_s")
            }
        figures[f"{method}_driver_calls_per_group"] = calls[method]
    settings = {
        "model_parameters": TINY.num_parameters,
        "responses": PROMPTS * GROUP_SIZE,
        "prompt_tokens": PROMPT_TOKENS,
        "mean_response_tokens": MEAN_TOKENS,
        "longest_response_tokens": max(lengths_by_kind()["long_tailed"]),
        "threads": threads,
        "trl_threads": trl_threads,
    }
    show(Result(benchmark="step", ratios=ratios, figures=figures, settings=settings), json, console)


if __name__ == "__main__":
    typer.run(main)
