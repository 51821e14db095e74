"""Scoring with a transformers model, over packed rows of the sequences of all waiting groups.

A row holds each group's prompt once. Only the requested log-probabilities are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actors.engines.devices import device_name
from actors.engines.hf_engine.output_layer import plain_output_weight
from actors.engines.hf_engine.packed_attention import PACKED_ATTENTION, PackedLayout
from actors.engines.hf_engine.scoring_row import scoring_row
from actors.engines.scorer import TokenScores, support_size
from rlad.config import TeacherConfig
from rlad.contracts import Array, TeacherSupport
from rlad.distributions.topk_logprobs import selected_and_top_logprobs
from rlad.errors import EngineError, ScoringRefusedError
from rlad.logprobs import selected_logprobs
from rlad.models.hidden_arrays import to_array

# Time for the forward pass in progress to end when the engine is closed.
_CLOSE_TIMEOUT_S = 60.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Group:
    """Group that is being scored. A row may hold only some of its sequences, and sequences of other groups."""

    prompt_ids: Array
    temperature: float
    scores: TokenScores
    sequences: list[_Sequence] = field(default_factory=list)
    remaining: int = 0
    done: Future[TokenScores] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[float, int, bool]:
        """Temperature, support size, and whether hidden states are returned, which all sequences of a row share."""
        return self.temperature, self.scores.support_size, self.scores.hidden_states is not None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sequence:
    """One response with its prompt.

    Attributes:
        group: Group of the response.
        response_ids: Response tokens, int32 [N], N at least 1.
        tokens: Position of the response in the group's scores.
    """

    group: _Group
    response_ids: Array
    tokens: slice

    @property
    def num_tokens(self) -> int:
        """Number of tokens in attention. The last token is a target only."""
        return len(self.group.prompt_ids) + len(self.response_ids) - 1


class TransformersScorer:
    """`Scorer` that runs its forward passes on a separate thread, so the event loop never blocks.

    A pass takes the waiting sequences in order of arrival, up to `config.token_budget` tokens. A group that arrives
    during a pass joins the next row.
    """

    def __init__(self, config: TeacherConfig, *, vocabulary_size: int | None = None) -> None:
        """Load the model, onto the GPU if the replica reserves one.

        Args:
            config: Settings of the teacher.
            vocabulary_size: Number of token ids that the student has. Later ones get probability 0; None means all.

        Raises:
            EngineError: The model cannot be loaded, or this engine cannot compute its log-probabilities.
        """
        self._token_budget = config.token_budget
        self._threads = config.threads
        self._device = torch.device(device_name(config.gpus_per_replica))
        try:
            model = AutoModelForCausalLM.from_pretrained(
                config.path,
                dtype=getattr(torch, config.dtype),
                attn_implementation=PACKED_ATTENTION,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise EngineError(f"cannot load a causal language model from {config.path}: {error}") from error
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._output_weight = plain_output_weight(self._model)[:vocabulary_size]
        self._max_sequence_tokens = int(self._model.config.max_position_embeddings)
        self._arrivals: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._waiting: deque[_Sequence] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="transformers-scorer", daemon=True)
        self._thread.start()

    async def score(
        self,
        prompt_ids: Array,
        response_ids: Array,
        response_offsets: Array,
        temperature: float,
        support: TeacherSupport = None,
    ) -> TokenScores:
        size = support_size(support, len(self._output_weight))
        longest = len(prompt_ids) + int(np.diff(response_offsets).max(initial=0))
        if longest > self._max_sequence_tokens and len(response_ids):
            raise ScoringRefusedError(
                f"a prompt with its response has {longest} tokens; "
                f"the context of the teacher is {self._max_sequence_tokens}"
            )
        scores = (
            TokenScores.of_hidden_states(self._empty_hidden_states(len(response_ids)))
            if support == "hidden_states"
            else TokenScores.empty(len(response_ids), size)
        )
        group = _Group(prompt_ids=prompt_ids, temperature=temperature, scores=scores)
        for start, end in itertools.pairwise(response_offsets.tolist()):
            if start < end:
                group.sequences.append(
                    _Sequence(group=group, response_ids=response_ids[start:end], tokens=slice(start, end))
                )
        if not group.sequences:
            return group.scores
        await self.check_health()
        group.remaining = len(group.sequences)
        self._arrivals.put(group)
        return await asyncio.wrap_future(group.done)

    async def check_health(self) -> None:
        if self._closed or not self._thread.is_alive():
            raise EngineError("the teacher's transformers engine has stopped")

    def close(self) -> None:
        self._closed = True
        self._arrivals.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)  # a daemon thread: it ends with the process at the latest

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while row := self._next_row():
            try:
                self._score_row(row)
            except Exception as error:  # noqa: BLE001 - any error fails this row's groups only; the next row may succeed
                _fail(row, EngineError(f"the teacher's forward pass failed: {type(error).__name__}: {error}"))
                if isinstance(error, torch.AcceleratorError):
                    break  # the CUDA context of this process is lost; Serve replaces an unhealthy replica
        self._closed = True
        _fail(self._waiting, EngineError("the teacher's transformers engine has stopped"))

    def _next_row(self) -> list[_Sequence]:
        """Return the sequences of the next row. Blocks until there is one; empty when the engine is closed."""
        row: list[_Sequence] = []
        while not row:
            while not self._waiting or not self._arrivals.empty():
                group = self._arrivals.get()  # unlimited wait: this thread has nothing to do without work
                if group is None:
                    return []
                self._waiting.extend(group.sequences)
            row = self._fill_row()
        return row

    def _fill_row(self) -> list[_Sequence]:
        """Take sequences of one kind, in order, up to the token budget. A longer sequence has a row of its own.

        Sequences of cancelled or failed groups are dropped.
        """
        row: list[_Sequence] = []
        budget = self._token_budget
        while self._waiting:
            sequence = self._waiting[0]
            if not sequence.group.done.done():
                if row and (sequence.num_tokens > budget or sequence.group.kind != row[0].group.kind):
                    break
                row.append(sequence)
                budget -= sequence.num_tokens
            self._waiting.popleft()
        return row

    @torch.inference_mode()
    def _score_row(self, row: list[_Sequence]) -> None:
        groups = [list(members) for _, members in itertools.groupby(row, key=lambda sequence: id(sequence.group))]
        packed = scoring_row(
            [(members[0].group.prompt_ids, [member.response_ids for member in members]) for members in groups]
        )
        outputs = self._model.base_model(
            input_ids=self._on_device(packed.token_ids)[None],
            position_ids=self._on_device(packed.position_ids)[None],
            use_cache=False,
            packed_layout=PackedLayout.from_offsets(
                packed.sequence_offsets, self._device, sources=packed.sources, places=packed.places
            ),
        )
        hidden = outputs.last_hidden_state[0].index_select(0, self._on_device(packed.predicting))
        scores = self._score_tokens(hidden, self._on_device(packed.target_ids), *row[0].group.kind)
        offsets = np.cumsum([0, *(len(sequence.response_ids) for sequence in row)]).tolist()
        for sequence, (start, end) in zip(row, itertools.pairwise(offsets), strict=True):
            sequence.group.scores[sequence.tokens] = scores[start:end]
            sequence.group.remaining -= 1
            if sequence.group.remaining == 0:
                _resolve(sequence.group.done, sequence.group.scores)

    def _empty_hidden_states(self, num_tokens: int) -> Array:
        weight = self._output_weight
        return to_array(torch.empty((num_tokens, weight.shape[1]), dtype=weight.dtype))

    def _score_tokens(
        self,
        hidden: torch.Tensor,
        target_ids: torch.Tensor,
        temperature: float,
        support: int,
        is_hidden: bool,
    ) -> TokenScores:
        if is_hidden:
            return TokenScores.of_hidden_states(to_array(hidden))
        if support == 0:
            logprobs = selected_logprobs(hidden, self._output_weight, target_ids, temperature=temperature)
            return TokenScores(logprobs=logprobs.cpu().numpy())
        selected, *others = selected_and_top_logprobs(
            hidden, self._output_weight, target_ids, support_size=support, temperature=temperature
        )
        support_ids, support_logprobs, tail_logprobs = (column.numpy() for column in others)
        return TokenScores(
            logprobs=selected.numpy(),
            support_ids=support_ids,
            support_logprobs=support_logprobs,
            tail_logprobs=tail_logprobs,
        )

    def _on_device(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def _resolve(future: Future[TokenScores], outcome: TokenScores | EngineError) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled by the caller, or failed in an earlier row
        if isinstance(outcome, EngineError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _fail(sequences: Iterable[_Sequence], error: EngineError) -> None:
    for sequence in sequences:
        _resolve(sequence.group.done, error)
