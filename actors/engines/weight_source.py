"""The student's parameters in the one order in which all ranks walk them, gathered bucket by bucket where ZeRO 3 has cut them up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch import Tensor, nn

BUCKET_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLayout:
    """A tensor without its values.

    Attributes:
        name: in the Hugging Face state dict.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """As vLLM and PyTorch's modules call it, for example `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


class StudentWeights:
    """Walks a model's parameters: every one once, tied ones under their first name.

    Iterating is collective where the model is partitioned: all ranks walk to the end, or the others wait in a gather. A tensor is the model's own memory
    (or DeepSpeed's gathered copy of it), to be read before the next one is asked for.
    """

    def __init__(self, model: nn.Module, *, is_partitioned: bool, bucket_bytes: int = BUCKET_BYTES) -> None:
        """
        Args:
            model: whose parameters have their Hugging Face names.
            is_partitioned: whether ZeRO 3 has cut the parameters up among the ranks.
            bucket_bytes: of whole parameters that are gathered at once; one that is larger is gathered alone.
        """
        self._named = list(model.named_parameters())
        self._is_partitioned = is_partitioned
        self._bucket_bytes = bucket_bytes

    def layouts(self) -> list[TensorLayout]:
        """What iterating yields, in that order. Known without gathering anything."""
        attribute = "ds_shape" if self._is_partitioned else "shape"  # what is left of a partitioned parameter is empty
        return [TensorLayout(name=name, dtype=parameter.dtype, shape=tuple(getattr(parameter, attribute))) for name, parameter in self._named]

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self._buckets():
            with GatheredParameters([parameter for _, parameter in bucket], enabled=self._is_partitioned):
                for name, parameter in bucket:
                    yield name, parameter.detach()

    def _buckets(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        bucket: list[tuple[str, nn.Parameter]] = []
        room = self._bucket_bytes
        for named, layout in zip(self._named, self.layouts(), strict=True):
            if bucket and layout.num_bytes > room:
                yield bucket
                bucket, room = [], self._bucket_bytes
            bucket.append(named)
            room -= layout.num_bytes
        if bucket:
            yield bucket
