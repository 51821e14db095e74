"""The mask of a vLLM model covers exactly the entries beyond the vocabulary."""

from __future__ import annotations

import torch

from actors.engines.vllm_engine.masking import mask_padding


class Model:
    """A model whose logits are its hidden states. It returns none where another rank gathers them."""

    def compute_logits(self, hidden: torch.Tensor | None) -> torch.Tensor | None:
        return None if hidden is None else hidden.clone()


def test_padding_has_no_probability_and_other_logits_are_unchanged() -> None:
    model, hidden = Model(), torch.arange(12.0).reshape(2, 6)
    mask_padding(model, 4)
    logits = model.compute_logits(hidden)
    assert logits is not None
    assert torch.equal(logits[:, :4], hidden[:, :4])
    assert torch.equal(logits[:, 4:], torch.full((2, 2), -torch.inf))
    assert model.compute_logits(None) is None


def test_a_mask_beyond_the_last_row_changes_nothing() -> None:
    model, hidden = Model(), torch.arange(6.0).reshape(1, 6)
    mask_padding(model, 6)
    assert torch.equal(model.compute_logits(hidden), hidden)  # type: ignore[arg-type]
