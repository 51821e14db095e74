"""Independent implementation of every objective, for comparison of gradients.

Written from the papers, one token at a time over float64 scalars. Shares no code with rlad.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .slow_reference import Padded

SETTINGS: dict[str, Any] = {
    "alpha": 0.5,
    "teacher_log_ratio_clamp": 1.0,
    "teacher_clamp_gradient": "clipped",
    "anchor": "always",
    "eps_low": 0.2,
    "eps_high": 0.28,
    "dual_clip": None,
    "mismatch": "off",
    "mismatch_cap": 2.0,
    "mismatch_floor": None,
    "reward_student": "behaviour",
    "aggregation": "response_mean",
    "reference_kl": 0.0,
    "reference_kl_estimator": "k3",
    "entropy_bonus": {"coefficient": 0.0},
    "beta": 2e-3,
    "beta_end": None,
    "beta_schedule": "linear",
    "imitate": "none",
    "extrapolation": 1.25,
    "entropy_threshold": 0.8,
    "forward_kl": 1.0,
    "weight_clip": 0.2,
    "mixing": 0.5,
    "mixing_decay": 1.0,
}


class Token:
    """Values of one token. The student's own values carry a graph."""

    def __init__(self, batch: Padded, student: dict[str, Tensor], i: int, t: int) -> None:
        extras = batch.extras
        self.policy, self.entropy, self.support = (
            student["policy"][i, t],
            student["entropies"][i, t],
            student["support"][i, t],
        )
        self.behaviour, self.teacher, self.advantage = (
            batch.behaviour[i, t].item(),
            batch.teacher[i, t].item(),
            batch.advantages[i].item(),
        )
        self.sampler, self.reference = extras.sampler_logprobs[i, t].item(), extras.reference_logprobs[i, t].item()
        self.teacher_support = [value.item() for value in extras.teacher_support_logprobs[i, t]]
        self.teacher_tail, self.is_imitated = extras.teacher_tail_logprobs[i, t].item(), bool(extras.is_imitated[i, t])


def loss(config: dict[str, Any], batch: Padded, student: dict[str, Tensor]) -> Tensor:
    """Return the loss to minimize.

    Args:
        student: `policy` and `entropies` [B, T], `support` [B, T, K].
    """
    s = SETTINGS | ({"estimator": "k1_reward" if config["name"] == "opd" else "k2"}) | config
    total = torch.zeros((), dtype=torch.float64)
    num_tokens = int(batch.mask.sum())
    for i in range(batch.policy.shape[0]):
        own = [t for t in range(batch.policy.shape[1]) if batch.mask[i, t]]
        for t in own:
            token = Token(batch, student, i, t)
            value = token_loss(s, token, batch.extras.progress)
            if s["reference_kl"]:
                value = value + s["reference_kl"] * sampled(token.policy - token.reference, s["reference_kl_estimator"])
            value = value - s["entropy_bonus"]["coefficient"] * token.entropy
            match s["aggregation"]:
                case "response_mean":
                    total = total + value / len(own) / batch.policy.shape[0]
                case "token_mean":
                    total = total + value / num_tokens
                case "fixed_length":
                    total = total + value / s["fixed_length"] / batch.policy.shape[0]
    return total


def token_loss(s: dict[str, Any], token: Token, progress: float) -> Tensor:
    plain = token.policy - token.behaviour
    match s["name"]:
        case "grpo":
            return surrogate_loss(s, plain, token.advantage, token)
        case "trrd":
            if s["anchor"] == "agreeing" and (token.teacher > token.behaviour) != (token.advantage > 0):
                return surrogate_loss(s, plain, token.advantage, token)
            if s["alpha"] == 1:
                return surrogate_loss(s, plain, token.advantage, token)
            to_teacher, c = token.policy - token.teacher, s["teacher_log_ratio_clamp"]
            highest, lowest = c, None
            if c == "auto":  # nine tenths of the clip range
                highest = 0.9 * math.log(1 + s["eps_high"]) / (1 - s["alpha"])
                lowest = 0.9 * math.log(1 - s["eps_low"]) / (1 - s["alpha"])
            held = to_teacher
            if to_teacher.item() > highest:
                held = torch.full_like(to_teacher, highest)
            elif to_teacher.item() < (-c if lowest is None else lowest):
                held = torch.full_like(to_teacher, -c if lowest is None else lowest)
            if s["teacher_clamp_gradient"] == "straight_through":
                held = to_teacher + (held - to_teacher).detach()
            return surrogate_loss(s, s["alpha"] * plain + (1 - s["alpha"]) * held, token.advantage, token)
        case "kdrl":
            beta = beta_at(s, progress)
            pull = s["imitate"] == "none" or token.is_imitated
            if s["estimator"] == "k1_reward":
                return surrogate_loss(
                    s, plain, token.advantage + (beta * (token.teacher - student_of(s, token)) if pull else 0.0), token
                )
            return surrogate_loss(s, plain, token.advantage, token) + (beta * divergence(s, token) if pull else 0.0)
        case "opd":
            if s["estimator"] == "k1_reward":
                return surrogate_loss(s, plain, token.teacher - student_of(s, token), token)
            return divergence(s, token)
        case "exopd":
            base = token.reference
            reward = s["extrapolation"] * (token.teacher - base) - (student_of(s, token) - base)
            return surrogate_loss(s, plain, reward, token)
        case "eopd":
            value = surrogate_loss(s, plain, token.teacher - student_of(s, token), token)
            masses = [math.exp(logprob) for logprob in [*token.teacher_support, token.teacher_tail]]
            if -sum(mass * math.log(mass) for mass in masses) > s["entropy_threshold"]:
                for ours, theirs in zip(token.support, token.teacher_support, strict=True):
                    value = value + s["forward_kl"] * math.exp(theirs) * (theirs - ours)
            return value
        case "rlsd":
            evidence = math.exp(token.teacher) / math.exp(token.behaviour)
            w = evidence if token.advantage > 0 else 1 / evidence
            w = min(max(w, 1 - s["weight_clip"]), 1 + s["weight_clip"])
            share = s["mixing"] if s["mixing_decay"] is None else s["mixing"] * (1 - progress / s["mixing_decay"])
            return surrogate_loss(s, plain, token.advantage * (1 - share) + token.advantage * share * w, token)
        case _:
            return -token.policy


def student_of(s: dict[str, Any], token: Token) -> float:
    return token.policy.item() if s["reward_student"] == "current" else token.behaviour


def beta_at(s: dict[str, Any], progress: float) -> float:
    if s["beta_end"] is None:
        return s["beta"]
    share = progress if s["beta_schedule"] == "linear" else 0.5 - 0.5 * math.cos(math.pi * progress)
    return (1 - share) * s["beta"] + share * s["beta_end"]


def surrogate_loss(s: dict[str, Any], log_ratio: Tensor, advantage: float, token: Token) -> Tensor:
    ratio = torch.exp(log_ratio)
    low, high = 1 - s["eps_low"], 1 + s["eps_high"]
    if advantage >= 0:
        gain = advantage * ratio if ratio.item() <= high else torch.full_like(ratio, advantage * high)
    else:
        gain = advantage * ratio if ratio.item() >= low else torch.full_like(ratio, advantage * low)
        if s["dual_clip"] is not None and gain.item() < s["dual_clip"] * advantage:
            gain = torch.full_like(ratio, s["dual_clip"] * advantage)
    if s["mismatch"] == "off":
        return -gain
    w, cap = math.exp(token.behaviour - token.sampler), s["mismatch_cap"]
    floor = 1 / cap if s["mismatch_floor"] is None else s["mismatch_floor"]
    weight = min(w, cap) if s["mismatch"] == "truncate" else (w if floor <= w <= cap else 0.0)
    return -gain * weight


def sampled(log_ratio: Tensor, estimator: str) -> Tensor:
    return log_ratio**2 / 2 if estimator == "k2" else torch.exp(-log_ratio) - 1 + log_ratio


def divergence(s: dict[str, Any], token: Token) -> Tensor:
    """Return KL(pi, pi_T), from the sampled token or over the support and one bucket for all other tokens."""
    if s["estimator"] in ("k2", "k3"):
        return sampled(token.policy - token.teacher, s["estimator"])
    value = torch.zeros((), dtype=torch.float64)
    rest = torch.ones((), dtype=torch.float64)
    for ours, theirs in zip(token.support, token.teacher_support, strict=True):
        value = value + torch.exp(ours) * (ours - theirs)
        rest = rest - torch.exp(ours)
    return value + rest * (torch.log(rest) - token.teacher_tail)
