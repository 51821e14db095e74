"""Engine for runs that must repeat bit for bit: it samples with the published weights, from a seed of each group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray
import torch
import xxhash
from ray import ObjectRef
from ray.exceptions import ObjectLostError
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from actors.experience.group import ColumnsRef
from actors.messages import GroupSummary, SampledGroup, SampleRequest, VerifierResult, WeightsPublication
from pipelines.simulation.harness import StandInPools
from rlad.contracts import Array, FinishReason, RolloutGroup, TeacherScores, TeacherSupport
from rlad.errors import WeightsLostError
from rlad.testing.records import make_verdicts

from .learner_reference import response_logprobs

EOS = 1


class SeededEngine:
    """Rollout workers, verifiers and teacher of a run, in one process.

    A vLLM engine does not repeat bit for bit, since the batches that it forms depend on the time.

    Attributes:
        digests: SHA-256 of the weights that were loaded, by version. A version that is trained again adds its own.
    """

    def __init__(self, model_path: Path, teacher_path: Path, on_report: Callable[[int], None] = lambda _: None) -> None:
        """
        Args:
            model_path: Directory of the student.
            teacher_path: Directory of the teacher.
            on_report: Called with the version of each publication, before it is loaded.
        """
        self._model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation="eager")
        self._teacher = AutoModelForCausalLM.from_pretrained(teacher_path, attn_implementation="eager")
        self._on_report, self._version = on_report, -1
        self.digests: dict[int, set[str]] = {}

    def pools(self) -> StandInPools:
        return StandInPools(rollout=self, verifiers=self, teacher=self, update_weights=self.update_weights)

    async def update_weights(self, publication: WeightsPublication) -> None:
        version = publication.manifest.version
        self._on_report(version)
        try:
            buckets = [await bucket.ref for bucket in publication.buckets]
        except ObjectLostError as error:
            raise WeightsLostError(f"version {version} was lost") from error
        data = b"".join(part.tobytes() for bucket in buckets for part in bucket)
        self._model.load_state_dict(load(data), strict=False)  # without the tied output layer
        self.digests.setdefault(version, set()).add(hashlib.sha256(data).hexdigest())
        self._version = version

    async def sample(self, request: SampleRequest, *, priority: int) -> SampledGroup:
        seed = torch.Generator().manual_seed(xxhash.xxh32_intdigest(request.uid.encode()))
        responses = [self._response(request, seed) for _ in range(request.num_responses)]
        offsets = np.cumsum([0, *map(len, responses)]).astype(np.int64)
        with torch.no_grad():
            logprobs = [response_logprobs(self._model, request.prompt_ids, each, 1.0) for each in responses]
        group = RolloutGroup(
            uid=request.uid,
            attempt=request.attempt,
            prompt_id=request.prompt_id,
            task=request.task,
            answer=request.answer,
            temperature=1.0,
            prompt_ids=request.prompt_ids,
            response_ids=np.concatenate(responses),
            response_offsets=offsets,
            behaviour_logprobs=torch.cat(logprobs).numpy(),
            policy_versions=np.full(offsets[-1], self._version, np.int32),
            finish_reasons=np.array(
                [FinishReason.STOP if each[-1] == EOS else FinishReason.LENGTH for each in responses], np.uint8
            ),
        )
        return SampledGroup(summary=GroupSummary.of(group), columns=ray.put(group.to_columns()), worker="seeded")

    async def verify(self, columns: ColumnsRef, *, task: str, num_tokens: int) -> VerifierResult:
        group = await self._group(columns)
        sums = [int(group.response_ids[group.response(index)].sum()) for index in range(group.num_responses)]
        return VerifierResult(verdicts=make_verdicts(group, [float(total % 2) for total in sums]), elapsed_s=0.0)

    async def score(
        self,
        group_ref: ColumnsRef,
        *,
        num_tokens: int,
        support: TeacherSupport = None,
        prompt_ids: Array | None = None,
    ) -> ObjectRef:
        group = await self._group(group_ref)
        with torch.no_grad():
            scores = [
                response_logprobs(self._teacher, group.prompt_ids, group.response_ids[group.response(index)], 1.0)
                for index in range(group.num_responses)
            ]
        teacher = TeacherScores(
            uid=group.uid, attempt=group.attempt, teacher="seeded", logprobs=torch.cat(scores).numpy()
        )
        return ray.put(teacher.to_columns())

    def _response(self, request: SampleRequest, seed: torch.Generator) -> np.ndarray:
        """Sample tokens of one response, at least one."""
        token_ids = torch.from_numpy(request.prompt_ids.astype(np.int64))[None]
        prompt = token_ids.shape[1]
        while token_ids.shape[1] < prompt + request.max_response_tokens and (
            token_ids.shape[1] == prompt or token_ids[0, -1] != EOS
        ):
            with torch.no_grad():
                probabilities = self._model(token_ids).logits[0, -1].softmax(dim=-1)
            token_ids = torch.cat([token_ids, torch.multinomial(probabilities, 1, generator=seed)[None]], dim=1)
        return token_ids[0, prompt:].numpy().astype(np.int32)

    async def _group(self, columns: ColumnsRef) -> RolloutGroup:
        return RolloutGroup.from_columns(await columns)
