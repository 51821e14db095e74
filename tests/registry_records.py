"""Records of a registry's versions, for tests in which their content does not matter."""

from __future__ import annotations

from rlad.evaluation.accuracy import PromptResult, summarise
from rlad.registry.versions import Lineage

EVALUATION = summarise(
    [PromptResult(prompt_id="p", groups=("2",), rewards=(1.0,), response_tokens=(3,), num_truncated=0)]
)
LINEAGE = Lineage(
    run_id="r",
    run_dir="/r",
    config_sha256="c",
    parent=None,
    base_model="m",
    teachers={},
    prompts_fingerprint="p",
    num_prompts=1,
    steps=1,
    rlad_version="0",
    git_commit=None,
    created_at="2026-01-31T02:00:00+00:00",
)
