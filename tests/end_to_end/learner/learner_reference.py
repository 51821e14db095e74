"""Scored groups, and slow reference trainers in plain PyTorch, without packing, ranks or ZeRO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlad.advantages import group_advantages, imitated_responses
from rlad.config.learner import OptimizerConfig
from rlad.contracts import FinishReason, RolloutGroup, ScoredGroup, TeacherScores, Verdicts
from rlad.objectives import Extras, Objective

Sequences = Sequence[tuple[str, int]]

OUTPUT_LAYER = "0" * 64
"""SHA-256 that stands for the output layer of groups with hidden states."""

ALPHA, EPS_LOW, EPS_HIGH = 0.5, 0.2, 0.28
OBJECTIVE = {"name": "trrd", "alpha": ALPHA, "eps_low": EPS_LOW, "eps_high": EPS_HIGH}

OTHER_OBJECTIVES: list[dict[str, Any]] = [
    {"name": "grpo", "aggregation": "token_mean", "mismatch": "truncate"},
    {"name": "kdrl", "beta": 0.5, "reference_kl": 0.2, "entropy_bonus": {"coefficient": 0.1}},
    {"name": "kdrl", "beta": 0.5, "estimator": "full", "imitate": "response"},
    {"name": "opd", "aggregation": "fixed_length", "fixed_length": 30},
    {"name": "opd", "estimator": "topk", "top_k": 4},
    {"name": "sft"},
]


def make_groups(
    model_path: Path | str, *, count: int, temperature: float = 1.0, seed: int = 0
) -> dict[str, ScoredGroup]:
    """Make groups of three responses of 0 to 25 tokens.

    The behaviour and teacher log-probabilities are close to those of the model.
    """
    rng = np.random.default_rng(seed)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64, attn_implementation="eager")
    groups = {}
    for number in range(count):
        lengths = [1, *rng.integers(2, 26, 2)] if number else [7, 0, 20]
        prompt, tokens = (
            rng.integers(2, 28, size).astype(np.int32) for size in (int(rng.integers(3, 12)), sum(lengths))
        )
        offsets = np.cumsum([0, *lengths]).astype(np.int64)
        with torch.no_grad():
            scores = torch.cat(
                [response_logprobs(model, prompt, part, temperature) for part in np.split(tokens, offsets[1:-1])]
            ).numpy()
        group = RolloutGroup(
            uid=f"g{number}",
            attempt=0,
            prompt_id=f"p{number}",
            task="any",
            answer="",
            temperature=temperature,
            prompt_ids=prompt,
            response_ids=tokens,
            response_offsets=offsets,
            behaviour_logprobs=(scores + rng.normal(0, 0.2, len(scores))).astype(np.float32),
            policy_versions=np.zeros(len(tokens), np.int32),
            finish_reasons=np.full(3, FinishReason.STOP, np.uint8),
        )
        verdicts = Verdicts(
            uid=group.uid,
            attempt=0,
            rewards=np.array([1, 0, number % 2], np.float32),
            outcomes=np.zeros(3, np.uint8),
            elapsed_s=np.zeros(3, np.float32),
        )
        teacher = TeacherScores(
            uid=group.uid,
            attempt=0,
            teacher="t",
            logprobs=(scores + rng.normal(0, 0.8, len(scores))).astype(np.float32),
        )
        groups[group.uid] = ScoredGroup(
            group=group, verdicts=verdicts, rewards=verdicts.rewards, teacher_scores=teacher
        )
    return groups


def sequences_of(groups: Mapping[str, ScoredGroup]) -> list[tuple[str, int]]:
    return [(uid, index) for uid, scored in groups.items() for index in range(scored.group.num_responses)]


def response_logprobs(model: torch.nn.Module, prompt: np.ndarray, response: np.ndarray, temperature: float) -> Tensor:
    """Return log-probabilities, [N], in the model's precision, from a forward pass over one sequence."""
    token_ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
    logits = model(token_ids[None]).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(dim=-1).gather(1, token_ids[len(prompt) :, None])[:, 0]


@dataclass(frozen=True)
class ReferenceUpdate:
    loss: float
    gradient_norm: float
    gaps: Tensor


class ReferenceTrainer:
    """TRRD written out (arXiv:2602.22495, Eq. 3-5), one response at a time in float64, with `torch.optim.AdamW`."""

    def __init__(self, model_path: Path | str, optimizer: OptimizerConfig, *, temperature: float = 1.0) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64, attn_implementation="eager")
        self._settings = optimizer
        self._temperature = temperature
        self._adamw = torch.optim.AdamW(
            self.model.parameters(),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        )

    def update(self, groups: Mapping[str, ScoredGroup], sequences: Sequences) -> ReferenceUpdate:
        """Run one update on these sequences, at a constant learning rate."""
        loss, gaps = self._backward(groups, sequences)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.max_gradient_norm)
        self._adamw.step()
        return ReferenceUpdate(loss=loss, gradient_norm=float(norm), gaps=gaps)

    def _backward(self, groups: Mapping[str, ScoredGroup], sequences: Sequences) -> tuple[float, Tensor]:
        """Compute the gradient of every weight. Return the loss, and the gap to the sampler for each token."""
        loss, gaps = torch.zeros((), dtype=torch.float64), []
        for uid, index in sequences:
            scored = groups[uid]
            tokens = scored.group.response(index)
            rewards = scored.verdicts.rewards.astype(np.float64)
            if tokens.start == tokens.stop:
                continue
            advantage = (rewards[index] - rewards.mean()) / rewards.std() if rewards.std() else 0.0
            policy = response_logprobs(
                self.model, scored.group.prompt_ids, scored.group.response_ids[tokens], self._temperature
            )
            behaviour = torch.from_numpy(scored.group.behaviour_logprobs[tokens].astype(np.float64))
            teacher = torch.from_numpy(scored.teacher_scores.logprobs[tokens].astype(np.float64))
            ratio = (ALPHA * (policy - behaviour) + (1 - ALPHA) * (policy - teacher).clamp(-1, 1)).exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - EPS_LOW, 1 + EPS_HIGH) * advantage)
            loss = loss - surrogate.mean() / len(sequences)
            gaps.append((policy - behaviour).abs().detach())
        self.model.zero_grad()
        loss.backward()
        return loss.item(), torch.cat(gaps)

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


class LoraReferenceTrainer(ReferenceTrainer):
    """Reference trainer for adapters: a dense model with weights W + scale B A, and the chain rule.

    The gradients are dA = scale B^T dW and dB = scale dW A^T.

    Attributes:
        adapters: A and B by peft's names, float64.
    """

    def __init__(
        self, model_path: Path | str, optimizer: OptimizerConfig, adapters: Mapping[str, Tensor], scale: float
    ) -> None:
        super().__init__(model_path, optimizer)
        self._base, self._scale = self.weights(), scale
        self.adapters = {name: weight.double() for name, weight in adapters.items()}
        self._adamw = torch.optim.AdamW(
            self.adapters.values(),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        )

    def update(self, groups: Mapping[str, ScoredGroup], sequences: Sequences) -> ReferenceUpdate:
        dense = dict(self.model.named_parameters())
        pairs = {
            name.removeprefix("base_model.model.").replace(".lora_A", ""): (
                a,
                self.adapters[name.replace("lora_A", "lora_B")],
            )
            for name, a in self.adapters.items()
            if "lora_A" in name
        }
        for name, (a, b) in pairs.items():
            dense[name].data = self._base[name] + self._scale * b @ a
        loss, gaps = self._backward(groups, sequences)
        for name, (a, b) in pairs.items():
            gradient = dense[name].grad
            a.grad, b.grad = self._scale * b.T @ gradient, self._scale * gradient @ a.T
        norm = torch.nn.utils.clip_grad_norm_(self.adapters.values(), self._settings.max_gradient_norm)
        self._adamw.step()
        return ReferenceUpdate(loss=loss, gradient_norm=float(norm), gaps=gaps)


def with_supports(
    model_path: Path | str, groups: Mapping[str, ScoredGroup], *, seed: int = 1
) -> dict[str, ScoredGroup]:
    """Return the groups with full-vocabulary teacher supports and reference scores.

    The teacher's distribution is random; the reference is close to the sampler.
    """
    rng = np.random.default_rng(seed)
    vocabulary = AutoModelForCausalLM.from_pretrained(model_path).config.vocab_size
    richer = {}
    for uid, scored in groups.items():
        size = scored.group.num_tokens
        logits = rng.normal(size=(size, vocabulary))
        distribution = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        teacher = TeacherScores(
            uid=uid,
            attempt=0,
            teacher="t",
            logprobs=distribution[np.arange(size), scored.group.response_ids].astype(np.float32),
            support_size=vocabulary,
            support_ids=np.tile(np.arange(vocabulary, dtype=np.int32), size),
            support_logprobs=distribution.astype(np.float32).ravel(),
            tail_logprobs=np.full(size, -np.inf, np.float32),
        )
        near = (scored.group.behaviour_logprobs + rng.normal(0, 0.3, size)).astype(np.float32)
        reference = TeacherScores(uid=uid, attempt=0, teacher="r", logprobs=near)
        richer[uid] = ScoredGroup(
            group=scored.group,
            verdicts=scored.verdicts,
            rewards=scored.rewards,
            teacher_scores=teacher,
            reference_scores=reference,
        )
    return richer


def with_hidden_states(groups: Mapping[str, ScoredGroup]) -> dict[str, ScoredGroup]:
    """Return the groups of `with_supports` with hidden states in place of supports.

    The hidden states are the log-probabilities, so the output layer to which they belong is the identity.
    """
    changed = {}
    for uid, scored in groups.items():
        teacher = scored.teacher_scores
        assert teacher is not None
        hidden = TeacherScores(
            uid=uid,
            attempt=0,
            teacher="t",
            logprobs=np.full_like(teacher.logprobs, np.nan),
            hidden_size=teacher.support_size,
            hidden_states=teacher.support_logprobs,
            output_layer=OUTPUT_LAYER,
        )
        changed[uid] = replace(scored, teacher_scores=hidden)
    return changed


class PaddedReference:
    """Reference for one update of any objective.

    Uses the padded form of the objective, over full log-softmaxes of single responses in float64.
    """

    def __init__(self, model_path: Path | str, optimizer: OptimizerConfig) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64, attn_implementation="eager")
        self._adamw = torch.optim.AdamW(
            self.model.parameters(), lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, weight_decay=0.0
        )

    def update(self, groups: Mapping[str, ScoredGroup], objective: Objective[Any]) -> float:
        """Run one update on all groups, and return the loss."""
        sequences = [(groups[uid], index) for uid, index in sequences_of(groups)]
        longest = max(scored.group.num_tokens for scored, _ in sequences)
        support_size = next(iter(groups.values())).teacher_scores.support_size
        padded: dict[str, list[Tensor]] = {}
        for scored, index in sequences:
            for name, column in self._columns(scored, index, objective).items():
                padding = [0, longest - len(column)] if column.ndim == 1 else [0, 0, 0, longest - len(column)]
                padded.setdefault(name, []).append(torch.nn.functional.pad(column, padding))
        columns = {name: torch.stack(rows) for name, rows in padded.items()}
        advantages = [
            float(group_advantages(scored.verdicts.rewards, objective.config.advantage_estimator)[index])
            for scored, index in sequences
        ]
        imitated = [
            bool(imitated_responses(scored.verdicts.rewards, objective.config.imitation_mask)[index])
            for scored, index in sequences
        ]
        mask = columns.pop("mask") > 0
        recomputed = objective.config.corrects_mismatch
        loss = objective(
            policy_logprobs=columns["policy"],
            behaviour_logprobs=columns["policy"].detach() if recomputed else columns["sampled"],
            teacher_logprobs=columns["teacher"],
            advantages=torch.tensor(advantages, dtype=torch.float64),
            mask=mask,
            extras=Extras(
                sampler_logprobs=columns["sampled"],
                reference_logprobs=columns["reference"],
                entropies=columns["entropy"],
                is_imitated=torch.tensor(imitated)[:, None].expand_as(mask),
                support_logprobs=columns["support"],
                teacher_support_logprobs=columns["teacher_support"].view(*mask.shape, support_size),
                teacher_tail_logprobs=columns["tail"],
            ),
        ).loss
        loss.backward()
        self._adamw.step()
        return loss.item()

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def _columns(self, scored: ScoredGroup, index: int, objective: Objective[Any]) -> dict[str, Tensor]:
        group, teacher, reference = scored.group, scored.teacher_scores, scored.reference_scores
        tokens = group.response(index)
        size = teacher.support_size
        token_ids = torch.from_numpy(np.concatenate([group.prompt_ids, group.response_ids[tokens]]).astype(np.int64))
        distribution = self.model(token_ids[None]).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(dim=-1)

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.float64))

        return {
            "policy": distribution.gather(1, token_ids[len(group.prompt_ids) :, None])[:, 0],
            "entropy": -(distribution.exp() * distribution).sum(dim=-1),
            "support": distribution[:, :size],
            "sampled": column(group.behaviour_logprobs[tokens]),
            "teacher": column(teacher.logprobs[tokens]),
            "reference": column(reference.logprobs[tokens]),
            "teacher_support": column(
                teacher.support_logprobs[tokens.start * size : tokens.stop * size].reshape(-1, size)
            ),
            "tail": column(teacher.tail_logprobs[tokens]),
            "mask": torch.ones(tokens.stop - tokens.start, dtype=torch.float64),
        }


def relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """Return the error relative to the movement from `start`: |found - expected| / |expected - start|.

    The norms are taken over all parameters together.
    """
    assert found.keys() == expected.keys()
    error = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in expected)
    moved = sum(float((expected[name].double() - start[name].double()).square().sum()) for name in expected)
    return (error / moved) ** 0.5
