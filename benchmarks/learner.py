"""The learner: what padding costs and packing saves, what RLAD's update costs beside GRPO's, and the memory of log-probabilities.

python -m benchmarks.learner --json OUT
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
import typer
from rich.console import Console

from actors.engines.zero_engine.trainer import ZeroTrainer
from benchmarks.logprob_memory import NUM_TOKENS, SMALL_TOKENS, VOCABULARY, peak_bytes, relative_errors
from benchmarks.measure import JsonPath, Paired, Pairs, Ratio, Result, cpu_seconds, measure_pairs, show
from benchmarks.padded_learner import PaddedLearner, padded_microbatches
from benchmarks.workload import TINY as MODEL
from benchmarks.workload import long_tailed_lengths, scored_groups, write_model
from pipelines.run.progress import RunProgress
from rlad.config.learner import LearnerConfig, OptimizerConfig
from rlad.contracts import ScoredGroup
from rlad.errors import EngineError
from rlad.microbatches import plan_microbatches
from rlad.objectives import Objective, build_objective
from rlad.packing import BatchCounts, BatchRules, LossNormalizer, build_training_batch
from rlad.training_batch import TrainingBatch

RESPONSES, GROUP_SIZE, PROMPT_TOKENS, MEDIAN_TOKENS = 64, 8, 48, 64
TOKEN_BUDGET = 4096
PADDING_RANKS, PADDING_RESPONSES = (1, 2, 4, 8), 256
_OPTIMIZER = OptimizerConfig(lr=1e-6)

MicroBatch = tuple[TrainingBatch, BatchCounts]


class Update:
    """One optimizer update's responses, and how they are cut."""

    def __init__(self, lengths: Sequence[int], *, vocabulary: int, objective: Objective[Any]) -> None:
        self.groups: dict[str, ScoredGroup] = scored_groups(
            lengths, group_size=GROUP_SIZE, prompt_tokens=PROMPT_TOKENS, vocabulary=vocabulary
        )
        self.sequences = [
            (uid, index) for uid, scored in self.groups.items() for index in range(scored.group.num_responses)
        ]
        self.lengths = [PROMPT_TOKENS + length for length in lengths]
        self._rules = BatchRules(objective=objective.config)

    def batches(self, cut: Sequence[Sequence[int]]) -> list[MicroBatch]:
        normalizer = LossNormalizer(num_responses=len(self.sequences))
        return [
            build_training_batch(
                self.groups, [self.sequences[index] for index in each], normalizer=normalizer, rules=self._rules
            )
            for each in cut
        ]

    @property
    def packed_cut(self) -> list[list[int]]:
        return plan_microbatches(self.lengths, token_budget=TOKEN_BUDGET, ranks=1)[0]

    def padded_cut(self, *, sort: bool) -> list[list[int]]:
        return padded_microbatches(self.lengths, token_budget=TOKEN_BUDGET, sort=sort)


def padding_shares() -> dict[int, float]:
    """By number of ranks, the share of an update's token slots that hold no token.

    A row has none itself; but ranks run their rows side by side, in lockstep, so a row shorter than the longest beside it waits as if it were padded to it.
    """
    lengths = [PROMPT_TOKENS + length for length in long_tailed_lengths(PADDING_RESPONSES, median=256)]
    shares = {}
    for ranks in PADDING_RANKS:
        plan = plan_microbatches(lengths, token_budget=8192, ranks=ranks)
        rows = [[sum(lengths[index] for index in row) for row in rank] for rank in plan]
        slots = sum(ranks * max(beside) for beside in zip(*rows, strict=True))
        shares[ranks] = 1 - sum(lengths) / slots
    return shares


def padded_share(lengths: Sequence[int], cut: Sequence[Sequence[int]]) -> float:
    """The same of padded batches on one rank."""
    return 1 - sum(lengths) / sum(len(batch) * max(lengths[index] for index in batch) for batch in cut)


def make_trainer(model: Path, objective: Objective[Any]) -> ZeroTrainer:
    config = LearnerConfig(zero_stage=0, optimizer=_OPTIMIZER, micro_batch_tokens=TOKEN_BUDGET)
    return ZeroTrainer(
        model_path=str(model),
        dtype=torch.float32,
        config=config,
        objective=objective,
        temperature=1.0,
        total_updates=1_000_000,
    )


def packed_update(trainer: ZeroTrainer, batches: Sequence[MicroBatch]) -> float:
    """Returns the gradient's norm."""
    for batch, counts in batches:
        trainer.accumulate(batch, counts)
    return trainer.step().gradient_norm


def padded_update(learner: PaddedLearner, batches: Sequence[MicroBatch]) -> float:
    for batch, _ in batches:
        learner.accumulate(batch)
    return learner.step()


def packed_against_padded(model: Path, lengths: Sequence[int], *, sort: bool, pairs: int) -> Paired:
    """CPU seconds of a padded and of a packed update on the same responses.

    Raises:
        EngineError: the two do not have the same gradient.
    """
    objective = build_objective({"name": "trrd"})
    update = Update(lengths, vocabulary=MODEL.vocabulary, objective=objective)
    packed, padded = update.batches(update.packed_cut), update.batches(update.padded_cut(sort=sort))
    trainer, learner = make_trainer(model, objective), PaddedLearner(model, optimizer=_OPTIMIZER, objective=objective)
    ours, theirs = packed_update(trainer, packed), padded_update(learner, padded)
    if abs(ours - theirs) > 1e-4 * theirs:
        raise EngineError(
            f"the packed and the padded update must have the same gradient, their norms are {ours} and {theirs}"
        )
    return measure_pairs(
        partial(cpu_seconds, partial(padded_update, learner, padded)),
        partial(cpu_seconds, partial(packed_update, trainer, packed)),
        pairs=pairs,
    )


def rlad_against_grpo(model: Path, lengths: Sequence[int], *, pairs: int) -> Paired:
    """CPU seconds of an update by TRRD and by GRPO on the same responses, each from scored groups to stepped weights."""
    actions = []
    for name in ("trrd", "grpo"):
        objective = build_objective({"name": name})
        update, trainer = (
            Update(lengths, vocabulary=MODEL.vocabulary, objective=objective),
            make_trainer(model, objective),
        )
        actions.append(partial(cpu_seconds, partial(_build_and_update, trainer, update)))
    return measure_pairs(*actions, pairs=pairs)


def _build_and_update(trainer: ZeroTrainer, update: Update) -> None:
    packed_update(trainer, update.batches(update.packed_cut))


def main(json: JsonPath = None, pairs: Pairs = 5) -> None:
    """Measure the learner: padding, packing, RLAD's update against GRPO's, memory of log-probabilities. About two minutes; what is timed runs on one thread."""
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    console = Console()
    skewed, uniform = long_tailed_lengths(RESPONSES, median=MEDIAN_TOKENS), [128] * RESPONSES
    padding = padding_shares()
    measured: dict[str, Paired] = {}
    with ExitStack() as closing:
        progress = closing.enter_context(RunProgress(console, total_steps=1))
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="rlad-benchmark-")))
        model = write_model(folder / "model", MODEL)
        comparisons = {
            "padded_over_packed": partial(packed_against_padded, model, skewed, sort=False),
            "sorted_padded_over_packed": partial(packed_against_padded, model, skewed, sort=True),
            "padded_over_packed_uniform": partial(packed_against_padded, model, uniform, sort=False),
            "rlad_over_grpo": partial(rlad_against_grpo, model, skewed),
        }
        for name, compare in comparisons.items():
            with progress.phase(name.replace("_", " ")):
                measured[name] = compare(pairs=pairs)
        with progress.phase(f"log-probabilities of {NUM_TOKENS} tokens x {VOCABULARY}"):
            chunked, whole = peak_bytes("chunked", NUM_TOKENS), peak_bytes("materialised", NUM_TOKENS)
        with progress.phase(f"the same values and gradients, on {SMALL_TOKENS} tokens"):
            errors = relative_errors(SMALL_TOKENS)
    prompt_order = [PROMPT_TOKENS + length for length in skewed]
    ratios = [
        Ratio(
            name="padding_share",
            value=max(padding.values()),
            target=0.05,
            means=f"token slots of packed rows without a token; worst of {PADDING_RANKS} ranks",
        ),
        Ratio(
            name="padded_over_packed",
            value=measured["padded_over_packed"].ratio,
            target=1.5,
            side="at least",
            means="update time, long-tailed lengths",
        ),
        Ratio(
            name="rlad_over_grpo",
            value=measured["rlad_over_grpo"].ratio,
            target=1.05,
            means="update time, long-tailed lengths",
        ),
        Ratio(
            name="logprob_memory_share",
            value=chunked / whole,
            target=0.1,
            means="peak memory, chunked over materialised",
        ),
        Ratio(
            name="logprob_error",
            value=errors["chunked"],
            target=1e-5,
            means="values and gradients in float32, from those of float64",
        ),
        Ratio(
            name="sorted_padded_over_packed",
            value=measured["sorted_padded_over_packed"].ratio,
            means="the same, padded batches sorted by length",
        ),
        Ratio(
            name="padded_over_packed_uniform",
            value=measured["padded_over_packed_uniform"].ratio,
            means="the same, all responses of 128 tokens",
        ),
    ]
    figures: dict[str, Any] = {
        "packed_update_s": measured["padded_over_packed"].second_median_s,
        "packed_tokens_per_s": sum(prompt_order) / measured["padded_over_packed"].second_median_s,
        "trrd_update_s": measured["rlad_over_grpo"].first_median_s,
        "padding_share_by_ranks": {str(ranks): round(share, 4) for ranks, share in padding.items()},
        "padding_share_padded": padded_share(
            prompt_order, padded_microbatches(prompt_order, token_budget=TOKEN_BUDGET, sort=False)
        ),
        "padding_share_padded_sorted": padded_share(
            prompt_order, padded_microbatches(prompt_order, token_budget=TOKEN_BUDGET, sort=True)
        ),
        "logprob_peak_bytes_chunked": chunked,
        "logprob_peak_bytes_materialised": whole,
        "logprob_error_materialised": errors["materialised"],
        "pairs": {name: [round(ratio, 3) for ratio in sorted(each.ratios)] for name, each in measured.items()},
    }
    settings = {
        "model_parameters": MODEL.num_parameters,
        "responses": RESPONSES,
        "prompt_tokens": PROMPT_TOKENS,
        "median_response_tokens": MEDIAN_TOKENS,
        "longest_response_tokens": max(skewed),
        "token_budget": TOKEN_BUDGET,
        "threads": torch.get_num_threads(),
    }
    show(Result(benchmark="learner", ratios=ratios, figures=figures, settings=settings), json, console)


if __name__ == "__main__":
    typer.run(main)
