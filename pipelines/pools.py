"""The pools that serve a run: rollout workers, the teacher, verifiers. Started together, closed together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from actors.rollout import RolloutPool
from actors.teacher import TeacherClient, delete_teacher, deploy_teacher
from actors.verifier import VerifierPool
from pipelines.waiting import together
from rlad.config import EvaluationSuite, RunConfig, TeacherConfig
from rlad.data.chat import tokenizer_fingerprint
from rlad.starters import resolve_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Handles to the running pools. `teacher` is None where the objective uses none."""

    rollout: RolloutPool
    verifiers: VerifierPool
    teacher: TeacherClient | None


@asynccontextmanager
async def open_pools(config: RunConfig | EvaluationSuite, *, run_id: str, with_teacher: bool = True) -> AsyncIterator[Pools]:
    """Start every pool at once and close them at the end of the block, whatever happens in it. An evaluation has no teacher."""
    student = str(resolve_model(config.student.path))
    timeout_s = config.cluster.start_timeout_s
    rollout = RolloutPool(config.rollout, model_path=student, dtype=config.student.dtype, seed=config.seed, start_timeout_s=timeout_s, run_id=run_id)
    verifiers = VerifierPool(config.verifier_pool, config.verifiers, tokenizer_path=student, start_timeout_s=timeout_s)
    async with AsyncExitStack() as closing:
        closing.push_async_callback(rollout.close)
        closing.push_async_callback(verifiers.close)
        starting: list[Coroutine[Any, Any, Any]] = [rollout.start(), verifiers.start()]
        if isinstance(config, RunConfig) and config.teacher is not None and with_teacher:
            closing.push_async_callback(delete_teacher, f"{run_id}-teacher")
            starting.append(_deploy(config.teacher, f"{run_id}-teacher", tokenizer_fingerprint(student), timeout_s))
        _, _, *teachers = await together(*starting)
        yield Pools(rollout=rollout, verifiers=verifiers, teacher=teachers[0] if teachers else None)


async def _deploy(config: TeacherConfig, app_name: str, fingerprint: str, timeout_s: float) -> TeacherClient:
    local = config.model_copy(update={"path": str(resolve_model(config.path))})
    return await deploy_teacher(local, app_name=app_name, tokenizer_fingerprint=fingerprint, start_timeout_s=timeout_s)
