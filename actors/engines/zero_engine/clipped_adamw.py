"""Optimizer for ZeRO stage 0."""

from __future__ import annotations

from typing import Any

import torch


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips by the global gradient norm and skips steps whose gradient is not finite.

    DeepSpeed's own optimizers do this at ZeRO stages 1 to 3; at stage 0 it uses a plain PyTorch optimizer. DeepSpeed
    reads the attributes `overflow` and `_global_grad_norm` after each step.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], *, max_gradient_norm: float, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self._max_gradient_norm = max_gradient_norm
        self._global_grad_norm = 0.0
        self.overflow = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not norm.isfinite()
        if not self.overflow:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._max_gradient_norm, norm)
            super().step()
