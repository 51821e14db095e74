"""The driver's side of the sample log: chooses groups and tells the recorder of them, without waiting for it.

A recorder that is slow, stuck or lost costs logged groups, which are counted, and never time of the run.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import ray
import xxhash
from ray.actor import ActorHandle

from actors.experience.group import ExperienceGroup
from actors.pool.placement import HEAD_POOL, selector_of
from actors.remote_errors import as_rlad_error
from actors.samples.recorder import SampleNotice, SampleRecorder
from pipelines.resolution.resolved_run import ResolvedRun
from rlad.samples.log import max_step_bytes, size_of

logger = logging.getLogger(__name__)

# Parts that the recorder may be behind. Each pins the columns of its groups in the object store.
_MAX_PENDING = 4
# A part that takes longer counts as lost.
_WRITE_TIMEOUT_S = 600.0
# Time at the end of the run for the parts of the last steps.
_CLOSE_TIMEOUT_S = 30.0
_HASHES = 2**64


class SampleLogger:
    """Chooses groups and hands each step's to the recorder. Its methods return at once and raise nothing."""

    def __init__(
        self, recorder: ActorHandle, *, share: float, max_step_bytes: int, max_pending: int = _MAX_PENDING
    ) -> None:
        """
        Args:
            recorder: The actor.
            share: Share of the groups to log.
            max_step_bytes: Maximum size of the groups of one step, as `size_of` estimates it.
            max_pending: Maximum number of parts that the recorder is behind; the groups of further steps are left out.
        """
        self._recorder, self._share, self._max_step_bytes = recorder, share, max_step_bytes
        self._max_pending = max_pending
        self._chosen: dict[int, dict[str, SampleNotice]] = {}
        self._tokens: Counter[int] = Counter()
        self._crowded_out: Counter[int] = Counter()
        self._writing: set[asyncio.Task[None]] = set()
        self._has_failed = False
        self.left_out = 0
        """Number of chosen groups that were not logged, because there was no room, or the recorder was slow or lost."""

    def add(self, step: int, group: ExperienceGroup, *, is_dropped: bool, worker: str) -> None:
        """Log a group if it is one of the chosen share. A later attempt of a group replaces an earlier one.

        Args:
            step: Number of the group's step, from 0.
            group: The group, with the scores of its teachers if it has any.
            is_dropped: Whether another group took its place.
            worker: Name of the rollout worker.
        """
        if xxhash.xxh3_64_intdigest(group.uid.encode()) >= self._share * _HASHES:
            return
        chosen = self._chosen.setdefault(step, {})
        if (earlier := chosen.pop(group.uid, None)) is not None:  # an attempt that was not trained on
            self._tokens[step] -= earlier.group.summary.num_tokens
        if size_of(self._tokens[step] + group.summary.num_tokens) > self._max_step_bytes:
            self._crowded_out[step] += 1
            return
        self._tokens[step] += group.summary.num_tokens
        chosen[group.uid] = SampleNotice(
            group=replace(group, reference_scores=None), is_dropped=is_dropped, worker=worker
        )

    def write_step(self, step: int, uids: Iterable[str]) -> None:
        """Let the recorder write the part of a step.

        Args:
            step: Number of the step, from 0. Its part has the number of trained steps, one more.
            uids: Uids of the step's groups. Others were abandoned and are not logged.
        """
        chosen, left_out = self._chosen.pop(step, {}), self._crowded_out.pop(step, 0)
        self._tokens.pop(step, None)
        notices = [chosen[uid] for uid in uids if uid in chosen]
        self.left_out += left_out
        if not notices:
            return
        if len(self._writing) >= self._max_pending:
            self._leave_out(len(notices), "the recorder is too slow")
            return
        answer = self._recorder.write_step.remote(step + 1, notices, left_out)
        writing = asyncio.create_task(self._follow(answer, len(notices)))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Wait for the recorder to write what it was told of, within a deadline."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=_CLOSE_TIMEOUT_S)
        for writing in self._writing:
            writing.cancel()
        if self.left_out:
            logger.warning("samples=incomplete left_out=%d", self.left_out)

    async def _follow(self, answer: Any, groups: int) -> None:
        """Wait for a part, and count its groups if it fails."""
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                lost = await answer
        except Exception as error:  # noqa: BLE001 - no failure of the recorder may end the run
            self._leave_out(groups, str(as_rlad_error(error, who="the sample recorder")))
        else:
            self.left_out += lost

    def _leave_out(self, groups: int, reason: str) -> None:
        self.left_out += groups
        if not self._has_failed:
            self._has_failed = True
            logger.warning("samples=left_out groups=%d reason=%s (logged once)", groups, reason)


@asynccontextmanager
async def open_sample_log(run: ResolvedRun, *, last_step: int) -> AsyncIterator[SampleLogger | None]:
    """Start the recorder, and end it after the block. Yields None if the run logs no samples.

    Offline runs log none: their groups are the teacher's traces, which are parquet files already.

    Args:
        run: The resolved run.
        last_step: Number of trained steps from which the run starts; samples of later steps are deleted.
    """
    settings, config = run.config.samples, run.config
    if settings.share == 0 or config.offline is not None:
        yield None
        return
    # Not restarted: a new process would take the steps since `last_step` for steps to train again.
    recorder = ray.remote(SampleRecorder).options(
        num_cpus=0, max_restarts=0, label_selector=selector_of(config.cluster, HEAD_POOL)
    )
    max_bytes = settings.max_mib * 2**20
    handle = recorder.remote(
        str(run.directory.samples),
        tokenizer_path=run.models.student.location,
        max_bytes=max_bytes,
        last_step=last_step,
    )
    samples = SampleLogger(handle, share=settings.share, max_step_bytes=max_step_bytes(max_bytes))
    try:
        yield samples
    finally:
        await samples.close()
        ray.kill(handle)
