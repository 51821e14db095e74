"""Weight source: the student's weights in an order common to all ranks, gathered by bucket under ZeRO stage 3."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch import Tensor, nn

from actors.engines.zero_engine.lora import StudentWeight

BUCKET_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLayout:
    """Name, dtype and shape of a tensor.

    Attributes:
        name: Name in the Hugging Face state dict.
        dtype: Data type.
        shape: Shape of the whole tensor.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """Data type by its name in the `torch` module, which vLLM uses too, for example `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


class WeightSource:
    """Iterable over named weights, adapters added. Each pass yields the current values.

    If the model is partitioned, iteration is collective: every rank must walk to the end, or the others wait in a
    gather. A yielded tensor is the model's memory or DeepSpeed's gathered copy of it, valid until the next one is
    requested. A weight with an adapter is a new tensor.
    """

    def __init__(
        self, weights: Iterable[StudentWeight], *, is_partitioned: bool, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        """
        Args:
            weights: Weights, each once, in the same order on all ranks.
            is_partitioned: Whether ZeRO stage 3 has partitioned the parameters.
            bucket_bytes: Maximum size of the parameters gathered at once, bytes. A weight that exceeds it together with
                its adapter is gathered on its own.
        """
        self._weights = list(weights)
        self._is_partitioned = is_partitioned
        self._bucket_bytes = bucket_bytes

    def layouts(self) -> list[TensorLayout]:
        """Return the layouts of the yielded tensors, in order, without gathering them."""
        return [
            TensorLayout(name=weight.name, dtype=weight.parameter.dtype, shape=self._shape(weight.parameter))
            for weight in self._weights
        ]

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self._buckets():
            with GatheredParameters([part for weight in bucket for part in weight.parts], enabled=self._is_partitioned):
                for weight in bucket:
                    yield weight.name, weight.value()

    def _buckets(self) -> Iterator[list[StudentWeight]]:
        bucket: list[StudentWeight] = []
        room = self._bucket_bytes
        for weight in self._weights:
            num_bytes = sum(math.prod(self._shape(part)) * part.itemsize for part in weight.parts)
            if bucket and num_bytes > room:
                yield bucket
                bucket, room = [], self._bucket_bytes
            bucket.append(weight)
            room -= num_bytes
        if bucket:
            yield bucket

    def _shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        # The shape of a partitioned parameter is empty; DeepSpeed keeps the original one in `ds_shape`.
        return tuple(getattr(parameter, "ds_shape" if self._is_partitioned else "shape"))
