"""Exact attention over a packed row: causal within each sequence, none between sequences.

Registered with transformers under `PACKED_ATTENTION`. A model loaded with `attn_implementation=PACKED_ATTENTION` takes
the row's `packed_layout` and builds no attention mask, so memory grows linearly with the row's length.

Sequences may share tokens of the row, such as the prompt of several responses. Attention then processes the shared
tokens once per sequence; all other layers process them once.

Shape letters: S tokens of the row, M sequences, E tokens of the M sequences, H query heads, K key-value heads, D head
size. E is larger than S where sequences share tokens.
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
    """Layout of the sequences in a row.

    Attributes:
        lengths: Length of each of the M sequences, tokens. The sum is E.
        offsets: Start of each sequence and the end of the last, int32 [M + 1], on the model's device.
        sources: Row position of each sequence token, int64 [E]. None if no tokens are shared; E is then S.
        places: One sequence position of each row token, int64 [S]. None if `sources` is None.
    """

    lengths: tuple[int, ...]
    offsets: Tensor
    sources: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def from_offsets(
        cls, offsets: Array, device: torch.device, *, sources: Array | None = None, places: Array | None = None
    ) -> PackedLayout:
        """Build the layout from the columns of a `TrainingBatch` or a `ScoringRow`.

        Args:
            offsets: `sequence_offsets`, int32 [M + 1].
            device: Device of the model.
            sources: As in the class, int64 [E].
            places: As in the class, int64 [S].
        """
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
    """Compute attention over a packed row, with the signature that transformers expects.

    On CUDA in half precision this is a single `varlen_attn` call, which CPU tests cannot run. Otherwise each sequence
    is processed separately, which was faster on CPU than padding sequences of similar length into batches.

    Args:
        module: Attention module, not used.
        query: Queries, [1, H, S, D].
        key: Keys, [1, K, S, D].
        value: Values, [1, K, S, D].
        attention_mask: Not used.
        packed_layout: Layout of the sequences in the row.
        scaling: Factor of the attention scores; the default of PyTorch if None.
        dropout: Dropout probability; must be 0.
        sliding_window: Number of latest tokens that a token attends to, itself included; None means all.
        softcap: Soft cap of the attention scores; must be None.
        s_aux: Attention sinks; must be None.

    Returns:
        Attention output, [1, S, H, D], and None for the attention weights.

    Raises:
        EngineError: The model needs attention other than plain causal attention.
    """
    _require_plain_attention(dropout, softcap, s_aux)
    window = None if sliding_window is None or sliding_window >= packed_layout.longest else sliding_window
    if packed_layout.sources is not None:
        query, key, value = (states.index_select(2, packed_layout.sources) for states in (query, key, value))
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        attended = _varlen_attention(query, key, value, packed_layout, scaling, window)
    else:
        attended = _attention_by_sequence(query, key, value, packed_layout, scaling, window)
    # A shared token has the same preceding tokens in each of its sequences, so any one of its results is the result.
    return attended if packed_layout.places is None else attended.index_select(1, packed_layout.places), None


def _attention_by_sequence(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None, window: int | None
) -> Tensor:
    enable_gqa = query.shape[1] != key.shape[1]
    sequences = zip(*(states.split(layout.lengths, dim=2) for states in (query, key, value)), strict=True)
    masks = [_window_mask(length, window, query.device) for length in layout.lengths]
    attended = [
        F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=enable_gqa
        )
        for (q, k, v), mask in zip(sequences, masks, strict=True)
    ]
    return torch.cat(attended, dim=2).transpose(1, 2)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return which tokens [L] attend to which [L], for a sequence longer than the window; None if it is not."""
    if window is None or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None, window: int | None
) -> Tensor:
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    causal = (-1 if window is None else window - 1, 0)  # this number of tokens back (-1: any), none ahead
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


def _require_plain_attention(dropout: float, softcap: float | None, s_aux: Tensor | None) -> None:
    """Raise `EngineError` for features that the packed kernels lack. Log-probabilities would be silently wrong."""
    if dropout:
        raise EngineError(
            f"packed attention requires dropout 0; the model sets {dropout}: a random policy has no likelihood ratio"
        )
    if softcap is not None or s_aux is not None:
        raise EngineError(
            "packed attention supports neither soft-capped scores nor attention sinks, which this model uses"
        )


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
