"""One configuration per objective, estimator and option, for tests of common properties."""

from __future__ import annotations

from typing import Any

EVERY_CONFIG: list[dict[str, Any]] = [
    {"name": "grpo"},
    {"name": "trrd"},
    {"name": "trrd", "teacher_clamp_gradient": "straight_through"},
    {"name": "trrd", "alpha": 1.0},
    {"name": "trrd", "alpha": 0.4, "teacher_log_ratio_clamp": "auto"},
    {"name": "trrd", "anchor": "agreeing"},
    {"name": "kdrl", "beta": 0.3},
    {"name": "kdrl", "beta": 0.3, "estimator": "k1_reward"},
    {"name": "kdrl", "beta": 0.3, "estimator": "k1_reward", "reward_student": "current"},
    {"name": "kdrl", "beta": 0.3, "estimator": "k3", "beta_end": 0.1, "imitate": "response"},
    {"name": "kdrl", "beta": 0.3, "estimator": "topk", "top_k": 3},
    {"name": "kdrl", "beta": 0.3, "estimator": "full", "imitate": "group", "beta_end": 0.0, "beta_schedule": "cosine"},
    {"name": "opd"},
    {"name": "opd", "reward_student": "current"},
    {"name": "opd", "estimator": "k2"},
    {"name": "opd", "estimator": "topk", "top_k": 3},
    {"name": "exopd"},
    {"name": "exopd", "extrapolation": 1.0},
    {"name": "exopd", "extrapolation": 0.5, "reward_student": "current"},
    {"name": "eopd", "top_k": 3},
    {"name": "eopd", "top_k": 3, "entropy_threshold": 0.0, "forward_kl": 0.4},
    {"name": "rlsd"},
    {"name": "rlsd", "mixing": 1.0, "mixing_decay": None, "weight_clip": 0.9},
    {"name": "sft"},
    {"name": "grpo", "dual_clip": 1.5},
    {"name": "grpo", "mismatch": "truncate", "mismatch_cap": 1.3},
    {"name": "trrd", "mismatch": "mask", "mismatch_cap": 1.3},
    {"name": "grpo", "mismatch": "mask", "mismatch_floor": 0.5, "mismatch_cap": 5},
    {"name": "trrd", "reference_kl": 0.2},
    {"name": "grpo", "reference_kl": 0.2, "reference_kl_estimator": "k2"},
    {"name": "grpo", "entropy_bonus": {"coefficient": 0.1}},
    {"name": "grpo", "aggregation": "token_mean"},
    {"name": "trrd", "aggregation": "fixed_length", "fixed_length": 7},
    {"name": "sft", "aggregation": "token_mean"},
]
