"""Masking of padded token ids in a vLLM model. Imported in vLLM's own processes, by `worker_extension_cls`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MaskExtension:
    """Method that engines call on vLLM's workers through `collective_rpc`, beyond vLLM's own."""

    # Of vLLM's worker class, which this one is mixed into. vLLM refuses attributes that exist in both.
    get_model: Callable[[], Any]

    def mask_padding(self, vocabulary_size: int) -> None:
        """Give the entries of the output layer from `vocabulary_size` on probability 0, until the engine ends.

        A request's own `allowed_token_ids` would send all other ids with each request. Every model runner calls the
        model's `compute_logits`, outside of compiled graphs.
        """
        mask_padding(self.get_model(), vocabulary_size)


def mask_padding(model: Any, vocabulary_size: int) -> None:
    """Replace the `compute_logits` of a model by one that returns -inf from column `vocabulary_size` on."""
    compute_logits = model.compute_logits

    def compute_masked_logits(*arguments: Any, **settings: Any) -> torch.Tensor | None:
        logits: torch.Tensor | None = compute_logits(*arguments, **settings)
        if logits is not None:  # other ranks of tensor parallelism have none
            logits[..., vocabulary_size:] = -torch.inf
        return logits

    model.compute_logits = compute_masked_logits
