"""Conversion of hidden states between torch and numpy, which has no bfloat16. No value is rounded.

Imports torch: only for code that computes with the states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.contracts import Array


def to_array(hidden: Tensor) -> Array:
    """Return hidden states of float32 or bfloat16 on the CPU: as float32, or as the bits of bfloat16 in uint16."""
    values = hidden.cpu()
    array: Array = (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values.float()).numpy()
    return array


def to_tensor(array: Array) -> Tensor:
    """Return the hidden states of an array of `to_array`, float32 or bfloat16, in the same memory."""
    values = torch.from_numpy(array)
    return values.view(torch.bfloat16) if values.dtype == torch.uint16 else values
