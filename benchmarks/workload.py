"""Workloads of the benchmarks: response lengths, small random Qwen3 models, and scored groups with all columns."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

from rlad.contracts import FinishReason, Outcome, RolloutGroup, ScoredGroup, TeacherScores, Verdicts

PAD_ID, END_ID, FIRST_ID = 0, 1, 2

# Standard deviation of the log length for a 99th percentile of ten times the median.
_TAIL_SIGMA = math.log(10) / NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Size of a random Qwen3 model with a head size of 32, as vLLM's CPU attention requires, and untied embeddings."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int

    @property
    def num_parameters(self) -> int:
        attention = 2 * self.hidden * 32 * (self.heads + self.key_value_heads) + 2 * 32
        layer = attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        return self.layers * layer + 2 * self.vocabulary * self.hidden + self.hidden


TINY = ModelSize(vocabulary=256, hidden=128, feed_forward=320, layers=4, heads=4, key_value_heads=4)
"""0.8 million parameters."""
SMALL = ModelSize(vocabulary=8192, hidden=256, feed_forward=768, layers=6, heads=8, key_value_heads=4)
"""9 million parameters: the matrix products are large enough to dominate the overhead of the calls."""


def long_tailed_lengths(count: int, *, median: int, seed: int = 0) -> list[int]:
    """Return shuffled lengths whose 99th percentile is ten times their median.

    They are quantiles of a log-normal distribution, and therefore equal in every run.
    """
    quantiles = [NormalDist().inv_cdf((index + 0.5) / count) for index in range(count)]
    lengths = [max(1, round(median * math.exp(_TAIL_SIGMA * quantile))) for quantile in quantiles]
    random.Random(seed).shuffle(lengths)
    return lengths


def write_model(directory: Path, size: ModelSize, *, seed: int = 0, max_tokens: int = 4096, ends: bool = True) -> Path:
    """Write a Hugging Face model directory with a tokenizer of one token per word (`w2`, `w3`, ...).

    Args:
        ends: whether the model has an end-of-sequence token; without one, engines sample up to the token budget.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = {"<pad>": PAD_ID, "<end>": END_ID, **{f"w{index}": index for index in range(FIRST_ID, size.vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", **({"eos_token": "<end>"} if ends else {})}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=32,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=False,
        eos_token_id=END_ID if ends else None,
        pad_token_id=PAD_ID,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(directory)
    return directory


def scored_groups(
    lengths: Sequence[int], *, group_size: int, prompt_tokens: int, vocabulary: int, seed: int = 0
) -> dict[str, ScoredGroup]:
    """Return groups by uid, with random tokens and all columns.

    Log-probabilities are close to those of a uniform distribution, and every second reward is 1.
    """
    rng = np.random.default_rng(seed)
    groups = {}
    for number, start in enumerate(range(0, len(lengths), group_size)):
        own = lengths[start : start + group_size]
        tokens, uid = sum(own), f"benchmark:0:{number}"
        group = RolloutGroup(
            uid=uid,
            attempt=0,
            prompt_id=f"p{number}",
            task="any",
            answer="",
            temperature=1.0,
            prompt_ids=rng.integers(FIRST_ID, vocabulary, prompt_tokens).astype(np.int32),
            response_ids=rng.integers(FIRST_ID, vocabulary, tokens).astype(np.int32),
            response_offsets=np.cumsum([0, *own]).astype(np.int64),
            behaviour_logprobs=_logprobs(rng, tokens, vocabulary),
            policy_versions=np.zeros(tokens, np.int32),
            finish_reasons=np.full(len(own), FinishReason.STOP, np.uint8),
        )
        verdicts = Verdicts(
            uid=uid,
            attempt=0,
            rewards=(np.arange(len(own)) % 2).astype(np.float32),
            outcomes=np.full(len(own), Outcome.CORRECT, np.uint8),
            elapsed_s=np.zeros(len(own), np.float32),
        )
        teacher = TeacherScores(uid=uid, attempt=0, teacher="random", logprobs=_logprobs(rng, tokens, vocabulary))
        groups[uid] = ScoredGroup(group=group, verdicts=verdicts, rewards=verdicts.rewards, teacher_scores=teacher)
    return groups


def _logprobs(rng: np.random.Generator, tokens: int, vocabulary: int) -> np.ndarray:
    return (-math.log(vocabulary) + rng.normal(0, 0.3, tokens)).clip(max=0).astype(np.float32)
