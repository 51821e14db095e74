"""The student's weights in the one order in which all ranks walk them, gathered bucket by bucket where ZeRO 3 has cut them up."""

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
    """Walks weights, with what adapters add to them.

    Iterating is collective where the model is partitioned: all ranks walk to the end, or the others wait in a gather. A tensor is the model's own memory
    (or DeepSpeed's gathered copy of it), to be read before the next one is asked for; where an adapter is added it is a new one.
    """

    def __init__(
        self, weights: Iterable[StudentWeight], *, is_partitioned: bool, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        """
        Args:
            weights: every one once, in the same order on all ranks.
            is_partitioned: whether ZeRO 3 has cut the parameters up among the ranks.
            bucket_bytes: of whole parameters that are gathered at once; a weight that is larger with its adapter is gathered alone with it.
        """
        self._weights = list(weights)
        self._is_partitioned = is_partitioned
        self._bucket_bytes = bucket_bytes

    def layouts(self) -> list[TensorLayout]:
        """What iterating yields, in that order. Known without gathering anything."""
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
        return tuple(
            getattr(parameter, "ds_shape" if self._is_partitioned else "shape")
        )  # what is left of a partitioned parameter is empty
