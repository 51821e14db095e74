"""Exact attention over a row that holds several sequences end to end: causal within each sequence, none between them.

Registered with transformers under `PACKED_ATTENTION`; a model loaded with `attn_implementation=PACKED_ATTENTION` is called with the row's
`packed_layout` and makes no mask at all, so memory grows with the row's length and not with its square.

Sequences may share tokens of the row (a prompt in front of several responses): attention sees them again in each, all other layers once.

Shape letters: S tokens of the row, M sequences, E tokens of the sequences, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from rlad.contracts import Array
from rlad.errors import EngineError

PACKED_ATTENTION = "rlad_packed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedLayout:
    """Where the sequences of a row lie.

    Attributes:
        lengths: tokens of each of the M sequences; they add up to E.
        offsets: int32 [M + 1] on the model's device.
        sources: int64 [E], the row's token at each place of the sequences; None where they share none, and the sequences are the row.
        places: int64 [S], for each token of the row one of its places in the sequences; None like `sources`.
    """

    lengths: tuple[int, ...]
    offsets: Tensor
    sources: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def from_offsets(
        cls, offsets: Array, device: torch.device, *, sources: Array | None = None, places: Array | None = None
    ) -> PackedLayout:
        """From a `TrainingBatch`'s int32 `sequence_offsets`, or all of a `ScoringRow`'s."""
        return cls(
            lengths=tuple((offsets[1:] - offsets[:-1]).tolist()),
            offsets=torch.from_numpy(offsets).to(device),
            sources=None if sources is None else torch.from_numpy(sources).to(device),
            places=None if places is None else torch.from_numpy(places).to(device),
        )

    @property
    def longest(self) -> int:
        return max(self.lengths)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls.

    On CUDA in half precision this is one `varlen_attn` call, which the CPU tests cannot run. Elsewhere each sequence is attended to on its own:
    on CPU that was faster than padding sequences of similar length into batches.

    Args:
        query: [1, H, S, D].
        key, value: [1, K, S, D].

    Returns:
        [1, S, H, D], and None for the attention weights.

    Raises:
        EngineError: the model wants attention that is not plain and causal.
    """
    _require_plain_attention(packed_layout, dropout, sliding_window, softcap, s_aux)
    if packed_layout.sources is not None:
        query, key, value = (states.index_select(2, packed_layout.sources) for states in (query, key, value))
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        attended = _varlen_attention(query, key, value, packed_layout, scaling)
    else:
        attended = _attention_by_sequence(query, key, value, packed_layout, scaling)
    # The same tokens in front of it: a shared token's result is the same at all its places.
    return attended if packed_layout.places is None else attended.index_select(1, packed_layout.places), None


def _attention_by_sequence(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None
) -> Tensor:
    enable_gqa = query.shape[1] != key.shape[1]
    sequences = zip(*(states.split(layout.lengths, dim=2) for states in (query, key, value)), strict=True)
    attended = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=enable_gqa)
        for q, k, v in sequences
    ]
    return torch.cat(attended, dim=2).transpose(1, 2)


def _varlen_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    causal = (-1, 0)  # any number of tokens back, none ahead
    enable_gqa = query.shape[1] != key.shape[1]
    longest = layout.longest
    attended = varlen_attn(
        q,
        k,
        v,
        layout.offsets,
        layout.offsets,
        longest,
        longest,
        scale=scaling,
        window_size=causal,
        enable_gqa=enable_gqa,
    )
    return cast(Tensor, attended)[None]


def _require_plain_attention(
    layout: PackedLayout, dropout: float, sliding_window: int | None, softcap: float | None, s_aux: Tensor | None
) -> None:
    """Refuse what a model may ask of its attention and the packed kernels do not do: the log-probabilities would be silently wrong."""
    if dropout:
        raise EngineError(
            f"the learner's attention has no dropout, the model asks for {dropout}: a random policy has no likelihood ratio"
        )
    if sliding_window is not None and layout.longest > sliding_window:
        raise EngineError(
            f"the learner's attention has no sliding window: the model's is {sliding_window}, the longest sequence {layout.longest}"
        )
    if softcap is not None or s_aux is not None:
        raise EngineError(
            "the learner's attention has neither soft-capped scores nor attention sinks, which this model uses"
        )


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
